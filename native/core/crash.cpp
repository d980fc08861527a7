#include "crash/report.h"

#include "core/error.h"

using namespace pyllm;

extern "C" {

pyllm_status pyllm_crash_report_enable(const char * folder, const char * about) {
    return guard([&] {
        not_null(folder, "folder");
        const std::string build   = format("pyllm %s, llama.cpp %s, %s", pyllm_version(), pyllm_upstream_commit(), pyllm_build_info());
        const std::string problem = crash::enable(folder, build, about != nullptr ? about : "");
        require(problem.empty(), PYLLM_NOT_FOUND, problem, "name a folder that exists and can be written");
    });
}

void pyllm_crash_report_disable(void) { crash::disable(); }

} // extern "C"
