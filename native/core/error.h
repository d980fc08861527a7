// The thread's last failure, and the wall that no exception passes.
#pragma once

#include "crash/record.h"
#include "pyllm.h"

#include <exception>
#include <new>
#include <string>

namespace pyllm {

// What a failing function of the ABI throws inside the library; guard() turns it into status, message and hint.
struct failure : std::exception {
    pyllm_status status;
    std::string  message;
    std::string  hint;

    failure(pyllm_status status, std::string message, std::string hint = "")
        : status(status), message(std::move(message)), hint(std::move(hint)) {}
    const char * what() const noexcept override { return message.c_str(); }
};

std::string format(const char * fmt, ...) __attribute__((format(printf, 1, 2)));

pyllm_status fail(pyllm_status status, const std::string & message, const std::string & hint = "") noexcept;

// Errors that upstream has logged since the last call, of any thread: the reason behind its null pointers and negative numbers.
void        log_errors_clear();
std::string log_errors();

template <typename F> pyllm_status guard(F && body) noexcept {
    crash::guard_thread();
    try {
        body();
        return PYLLM_OK;
    } catch (const failure & e) {
        return fail(e.status, e.message, e.hint);
    } catch (const std::bad_alloc &) {
        return fail(PYLLM_OUT_OF_MEMORY, "out of memory", "use a smaller context, batch or model");
    } catch (const std::exception & e) {
        return fail(PYLLM_INTERNAL, std::string("unexpected exception: ") + e.what());
    } catch (...) {
        return fail(PYLLM_INTERNAL, "unexpected exception of an unknown type");
    }
}

[[noreturn]] inline void fail_with(pyllm_status status, const std::string & message, const std::string & hint = "") { throw failure(status, message, hint); }

// require(condition, status, message[, hint]) throws unless the condition holds. A macro, so that only a message that is thrown is made: steps check much.
#define require(condition, ...) ((condition) ? (void) 0 : ::pyllm::fail_with(__VA_ARGS__))

template <typename T> T * not_null(T * pointer, const char * what) {
    if (pointer == nullptr) {
        throw failure(PYLLM_INVALID_ARGUMENT, std::string(what) + " is NULL");
    }
    return pointer;
}

// Copies text into a caller's buffer as the ABI promises: always terminated, *length of the whole.
void copy_text(const std::string & text, char * out, size_t capacity, size_t * length);

} // namespace pyllm
