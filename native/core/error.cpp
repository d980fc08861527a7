#include "core/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

namespace pyllm {

namespace {
struct last_error {
    std::string message;
    std::string hint;
};

last_error & last() {
    static thread_local last_error error;
    return error;
}
} // namespace

std::string format(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    const int n = std::vsnprintf(nullptr, 0, fmt, args);
    va_end(args);
    std::vector<char> text(n < 0 ? 1 : (size_t) n + 1, '\0');
    std::vsnprintf(text.data(), text.size(), fmt, again);
    va_end(again);
    return text.data();
}

pyllm_status fail(pyllm_status status, const std::string & message, const std::string & hint) noexcept {
    try {
        last().message = message;
        last().hint    = hint;
    } catch (...) { // the status alone still tells the class
    }
    return status;
}

void copy_text(const std::string & text, char * out, size_t capacity, size_t * length) {
    if (length != nullptr) {
        *length = text.size();
    }
    if (out != nullptr && capacity > 0) {
        const size_t n = text.size() < capacity - 1 ? text.size() : capacity - 1;
        std::memcpy(out, text.data(), n);
        out[n] = '\0';
    }
}

} // namespace pyllm

extern "C" {

const char * pyllm_error_message(void) { return pyllm::last().message.c_str(); }
const char * pyllm_error_hint(void) { return pyllm::last().hint.c_str(); }

const char * pyllm_status_name(pyllm_status status) {
    static const char * const names[PYLLM_STATUS_COUNT] = {
        "ok",   "invalid argument", "not found",    "model format",  "incompatible", "unsupported", "limit",
        "context full", "out of memory", "state", "decode", "cancelled", "internal",
    };
    return status >= 0 && status < PYLLM_STATUS_COUNT ? names[status] : "unknown status";
}

} // extern "C"
