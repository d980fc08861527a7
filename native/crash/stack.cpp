#include "crash/stack.h"

#include <csignal>
#include <cstddef>

#include <sys/mman.h>
#include <unistd.h>

namespace pyllm::crash {

namespace {

// Signal frames of wide vector units take 4 KiB, unwinding some more; untouched pages cost nothing.
constexpr size_t stack_size = 128 * 1024;

class SignalStack {
public:
    SignalStack() {
        if (sigaltstack(nullptr, &before_) != 0 || ((before_.ss_flags & SS_DISABLE) == 0 && before_.ss_size >= stack_size)) {
            return;
        }
        // The page below stays inaccessible: a handler that overflows in turn must not write over its neighbours.
        const size_t page = (size_t) sysconf(_SC_PAGESIZE);
        void *       base = mmap(nullptr, page + stack_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) {
            return;
        }
        base_ = static_cast<char *>(base);
        size_ = page + stack_size;
        stack_t stack{};
        stack.ss_sp   = base_ + page;
        stack.ss_size = stack_size;
        if (mprotect(stack.ss_sp, stack_size, PROT_READ | PROT_WRITE) != 0 || sigaltstack(&stack, nullptr) != 0) {
            munmap(base_, size_);
            base_ = nullptr;
        }
    }

    ~SignalStack() {
        stack_t now{};
        if (base_ == nullptr || sigaltstack(nullptr, &now) != 0) {
            return;
        }
        const char * sp = static_cast<const char *>(now.ss_sp);
        if (sp >= base_ && sp < base_ + size_ && sigaltstack(&before_, nullptr) != 0) {
            return; // in use: the thread ends inside a handler
        }
        munmap(base_, size_);
    }

    SignalStack(const SignalStack &)             = delete;
    SignalStack & operator=(const SignalStack &) = delete;

private:
    stack_t before_{};
    char *  base_ = nullptr;
    size_t  size_ = 0;
};

} // namespace

void guard_stack() {
    static thread_local SignalStack stack;
    (void) stack;
}

} // namespace pyllm::crash
