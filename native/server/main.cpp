// pyllm-server: upstream's server on the patched core.

#include "server/crash_report.h"
#include "server/depth.h"
#include "server/route_flags.h"

#include <cstdio>
#include <cstring>
#include <vector>

int llama_server(int argc, char ** argv);

int main(int argc, char ** argv) {
    // `pyllm serve` and the package ask this before they start a binary: both have to come from one build.
    if (argc == 2 && std::strcmp(argv[1], "--pyllm-version") == 0) {
        std::printf("pyllm-server %s (llama.cpp %s)\n", PYLLM_VERSION, PYLLM_UPSTREAM_COMMIT);
        return 0;
    }
    pyllm::server::enable_crash_report("pyllm-server " PYLLM_VERSION ", llama.cpp " PYLLM_UPSTREAM_COMMIT, argc, argv);
    std::vector<char *> arguments(argv, argv + argc);
    pyllm::server::take_depth_flag(arguments);
    if (!pyllm::server::take_route_flags(arguments)) {
        return 2;
    }
    arguments.push_back(nullptr);
    return llama_server((int) arguments.size() - 1, arguments.data());
}
