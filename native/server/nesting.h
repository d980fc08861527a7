// Recursion of upstream over what a request sends: deeper than this it is an exception, not the end of the stack.
#pragma once

#include <stdexcept>
#include <string>

namespace pyllm {

// Frames are 1 KiB at most, on threads with stacks of 8 MiB.
class Nesting {
public:
    Nesting(const char * what, int limit) {
        if (depth() >= limit) {
            throw std::runtime_error("more than " + std::to_string(limit) + " " + what);
        }
        ++depth();
    }
    ~Nesting() { --depth(); }
    Nesting(const Nesting &)             = delete;
    Nesting & operator=(const Nesting &) = delete;

private:
    static int & depth() {
        static thread_local int depth = 0;
        return depth;
    }
};

} // namespace pyllm
