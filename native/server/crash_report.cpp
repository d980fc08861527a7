#include "server/crash_report.h"

#include "crash/record.h"
#include "crash/report.h"

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

extern "C" void ggml_print_backtrace(void); // ggml-impl.h

namespace pyllm::server {

// What follows these flags is for nobody else's eyes, and reports are made to be handed on.
static bool is_secret(const std::string & flag) {
    return flag == "--api-key" || flag == "--hf-token" || flag == "-hft";
}

static std::string command_line(int argc, char ** argv) {
    std::string text;
    for (int i = 0; i < argc; ++i) {
        const std::string word  = i > 0 && is_secret(argv[i - 1]) ? "***" : argv[i];
        const bool        plain = !word.empty() && word.find_first_of(" \t\n\"'`$&|;<>()*?[]{}!\\") == std::string::npos;
        text += i > 0 ? " " : "";
        if (plain || word == "***") {
            text += word;
            continue;
        }
        text += '\'';
        for (const char c : word) {
            text += c == '\'' ? std::string("'\\''") : std::string(1, c);
        }
        text += '\'';
    }
    return text;
}

// As upstream's own abort, which tells and shows where, and then aborts.
static void on_abort(const char * message) {
    crash::remember(message);
    fprintf(stderr, "%s\n", message);
    ggml_print_backtrace();
}

void enable_crash_report(const char * version, int argc, char ** argv) {
    const char * folder = getenv("PYLLM_CRASH_DIR");
    if (folder != nullptr && *folder == '\0') {
        return;
    }
    if (folder == nullptr) {
        folder = getenv("TMPDIR");
    }
    const std::string problem =
        crash::enable(folder != nullptr && *folder != '\0' ? folder : "/tmp", std::string(version) + ", compiler " + __VERSION__, command_line(argc, argv));
    if (!problem.empty()) {
        fprintf(stderr, "warning: no crash report will be written: %s\n\nhint: name another folder with PYLLM_CRASH_DIR, or switch reports off with an empty one\n", problem.c_str());
        return;
    }
    // Not now: what it asks starts the GPU backends, and the flags that choose devices are not read yet.
    crash::describe_later(llama_print_system_info);
    ggml_set_abort_callback(on_abort);
}

} // namespace pyllm::server
