// A bound on the work that one step of a grammar may cost: an ambiguous grammar doubles its stacks with every character.
// Upstream's matcher calls grammar_work (see the patch of that name); without a budget on this thread that does nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace pyllm {

struct grammar_exhausted : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline thread_local size_t grammar_work_left = SIZE_MAX; // SIZE_MAX: no budget

// n in elements compared or copied, about a nanosecond each; a stack that is remembered counts 256, for its memory.
inline void grammar_work(size_t n) {
    if (grammar_work_left == SIZE_MAX) {
        return;
    }
    if (n > grammar_work_left) {
        throw grammar_exhausted("the grammar is too ambiguous");
    }
    grammar_work_left -= n;
}

class grammar_budget {
public:
    explicit grammar_budget(size_t work) : before(grammar_work_left) { grammar_work_left = work; }
    ~grammar_budget() { grammar_work_left = before; }
    grammar_budget(const grammar_budget &) = delete;
    grammar_budget & operator=(const grammar_budget &) = delete;

private:
    size_t before;
};

} // namespace pyllm
