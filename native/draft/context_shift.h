#pragma once

// What drafters remember about a sequence, when its context is shifted: n_discard tokens are cut out
// of the middle and everything behind them moves down by n_discard positions.

#include "llama.h"

#include <algorithm>
#include <cstddef>

namespace pyllm {

// Empty an n-gram map. Its keys and values are indices into the prompt, so none of them survives a
// cut; the next draft indexes the prompt it is given from the start.
template <class Map>
void forget_prompt(Map & map) {
    map.keys.clear();
    std::fill(map.key_map.begin(), map.key_map.end(), 0);
    map.key_map_last_idx     = 0;
    map.size_last_begin      = 0;
    map.idx_last_check       = 0;
    map.last_draft_created   = false;
    map.last_draft_key_idx   = 0;
    map.last_draft_value_idx = 0;
}

// a prompt of n_tokens that is shorter than what the map has seen was cut without a word
template <class Map>
void forget_if_cut(Map & map, size_t n_tokens) {
    if (map.idx_last_check > n_tokens || map.size_last_begin > n_tokens) {
        forget_prompt(map);
    }
}

// a position at the end of the sequence, -1: none
inline void shift_position(llama_pos & pos, llama_pos n_discard) {
    if (pos >= 0) {
        pos = std::max(0, pos - n_discard);
    }
}

// a count of tokens from the start of the sequence that includes the cut
inline void shift_count(size_t & n_tokens, llama_pos n_discard) {
    n_tokens -= std::min(n_tokens, (size_t) std::max(0, n_discard));
}

} // namespace pyllm
