#include "core/error.h"
#include "core/library.h"
#include "crash/record.h"
#include "crash/report.h"

#include "common.h"
#include "llama.h"
#include "log.h"

#include <atomic>
#include <cstdio>
#include <deque>
#include <mutex>

namespace pyllm {

namespace {

std::atomic<int32_t> log_level{5};
std::mutex           log_mutex;
std::string          error_line; // upstream writes a line in pieces: the pieces after the first have level CONT
bool                 error_open = false;
std::deque<std::string> error_lines;
constexpr size_t     max_error_lines = 16;

void keep_error(const char * text) {
    error_line += text;
    if (!error_line.empty() && error_line.back() == '\n') {
        while (!error_line.empty() && (error_line.back() == '\n' || error_line.back() == ' ')) {
            error_line.pop_back();
        }
        if (!error_line.empty()) {
            error_lines.push_back(error_line);
            if (error_lines.size() > max_error_lines) {
                error_lines.pop_front();
            }
        }
        error_line.clear();
        error_open = false;
    }
}

void on_log(ggml_log_level level, const char * text, void *) {
    std::lock_guard<std::mutex> lock(log_mutex);
    const bool continued = level == GGML_LOG_LEVEL_CONT;
    if (level != GGML_LOG_LEVEL_DEBUG || log_level.load(std::memory_order_relaxed) <= GGML_LOG_LEVEL_DEBUG) {
        crash::record_log(level, text);
    }
    if (level == GGML_LOG_LEVEL_ERROR || (continued && error_open)) {
        error_open = true;
        keep_error(text);
    } else {
        error_open = false;
    }
    // ggml's order: none 0, debug 1, info 2, warn 3, error 4
    if (!continued && level != GGML_LOG_LEVEL_NONE && (int32_t) level >= log_level.load(std::memory_order_relaxed)) {
        std::fputs(text, stderr);
    }
}

thread_local int aborts_caught = 0;

void on_abort(const char * message) {
    if (aborts_caught > 0) {
        std::string text = message;
        while (!text.empty() && text.back() == '\n') {
            text.pop_back();
        }
        throw failure(PYLLM_INTERNAL, "upstream stopped at an assertion: " + text);
    }
    crash::remember(message);
    std::fprintf(stderr, "%s\n", message);
    std::fflush(stderr);
}

} // namespace

abort_is_exception::abort_is_exception() { aborts_caught += 1; }
abort_is_exception::~abort_is_exception() { aborts_caught -= 1; }

void log_errors_clear() {
    std::lock_guard<std::mutex> lock(log_mutex);
    error_lines.clear();
    error_line.clear();
    error_open = false;
}

std::string log_errors() {
    std::lock_guard<std::mutex> lock(log_mutex);
    std::string text;
    for (const auto & line : error_lines) {
        text += text.empty() ? line : "; " + line;
    }
    return text;
}

void library_init() {
    static std::once_flag once;
    std::call_once(once, [] {
        llama_log_set(on_log, nullptr);
        ggml_set_abort_callback(on_abort);
        // Upstream's drafting code logs through a second channel, with a thread of its own.
        common_log_set_verbosity_thold(-1);
        llama_backend_init();
    });
}

} // namespace pyllm

extern "C" {

const char * pyllm_version(void) { return PYLLM_VERSION; }
int32_t      pyllm_abi_version(void) { return PYLLM_ABI_VERSION; }
const char * pyllm_upstream_commit(void) { return PYLLM_UPSTREAM_COMMIT; }

const char * pyllm_build_info(void) {
    static std::string info;
    static std::once_flag once;
    std::call_once(once, [] {
        pyllm::library_init();
        info = std::string("compiler ") + __VERSION__ + "; " + llama_print_system_info();
        while (!info.empty() && (info.back() == ' ' || info.back() == '|')) {
            info.pop_back();
        }
    });
    return info.c_str();
}

void pyllm_log_set_level(int32_t level) {
    pyllm::library_init();
    pyllm::log_level.store(level);
    // Upstream's scale runs the other way: 1 error … 5 debug.
    common_log_set_verbosity_thold(level >= 5 ? -1 : 5 - level + (level == 1 ? 1 : 0));
}

const char * pyllm_kernels(void) { return PYLLM_KERNELS; }
int32_t pyllm_default_threads(void) { return common_cpu_get_num_math(); }

int32_t pyllm_kv_type_from_name(const char * name) {
    // The types that upstream's own --cache-type-k offers.
    static const ggml_type types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,   GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                       GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 };
    if (name != nullptr) {
        for (const ggml_type type : types) {
            if (std::string(ggml_type_name(type)) == name) {
                return (int32_t) type;
            }
        }
    }
    return -1;
}

const char * pyllm_kv_type_name(int32_t type) {
    return type >= 0 && type < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type) : "unknown";
}

} // extern "C"
