#pragma once

// How much one request lets the drafters draft: `speculative.n_max`, `speculative.n_min` and `speculative.p_min` of its body.

#include <algorithm>
#include <cstdint>

namespace pyllm::server {

struct draft_limits {
    int32_t n_max = -1; // tokens drafted at once at most, 0: no drafting, -1: as the server
    int32_t n_min = 0;  // a shorter draft is not verified
    float   p_min = -1; // a draft ends before a token that is less certain, below 0: as the server

    int32_t within(int32_t n_draft) const { return n_max < 0 ? n_draft : std::min(n_draft, n_max); }

    // takes a draft that is too short away
    template <class Tokens>
    void drop_short(Tokens & draft) const {
        if ((int64_t) draft.size() < n_min) {
            draft.clear();
        }
    }
};

} // namespace pyllm::server
