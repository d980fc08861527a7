// Tokens of a sequence that may be taken out again after the decode that has written them: drafts that are rejected.
//
// A sliding-window cache gives the cells away that the window has passed. Once it has passed them by tokens that are rejected later, the next token
// lacks a part of its window. Caches therefore keep as many cells more as tokens may be taken out.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyllm {

// Caches that this thread creates while it lives allow for at least n tokens per sequence.
class tentative_tokens {
public:
    explicit tentative_tokens(uint32_t n) : before_(current()) { current() = std::max(before_, n); }
    ~tentative_tokens() { current() = before_; }
    tentative_tokens(const tentative_tokens &) = delete;
    tentative_tokens & operator=(const tentative_tokens &) = delete;

    static uint32_t now() { return current(); }

    // What a context with these outputs may verify at once: of each sequence all rows but one. 0 outputs are those of a caller who verifies nothing.
    static uint32_t of(uint32_t n_outputs_max, uint32_t n_outputs_max_per_seq, uint32_t n_seq_max) {
        const uint32_t per_seq = n_outputs_max_per_seq > 0 ? n_outputs_max_per_seq : n_outputs_max / std::max<uint32_t>(1, n_seq_max);
        return n_outputs_max > 0 && per_seq > 1 ? per_seq - 1 : 0;
    }

private:
    static uint32_t & current() {
        static thread_local uint32_t n = 0;
        return n;
    }
    uint32_t before_;
};

} // namespace pyllm
