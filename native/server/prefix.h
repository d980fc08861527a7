#pragma once

// What of a slot's cache a new prompt can start from.
//
// A drafter pairs a token with the target's hidden row before it. Where the prompt leaves the cached conversation that row is usually gone, so the
// target computes the last shared token once more; the draft memory keeps its cell for it, which is right already.

#include "common.h"
#include "llama.h"
#include "speculative.h"

#include <cstdint>

namespace pyllm::server {

// Of the first n_past tokens of a sequence, which end before position pos, this many may stay in the target's memory: n_past, or one less.
inline int32_t reusable_tokens(const common_speculative * spec, llama_seq_id seq, int32_t n_past, llama_pos pos) {
    return n_past > 0 && common_speculative_reusable(spec, seq, pos) < pos ? n_past - 1 : n_past;
}

// Keep the positions before p0, in the draft memory n_more of them after that too.
inline void cut_memory(const common_memory & memory, llama_context * ctx_tgt, llama_context * ctx_dft, llama_seq_id seq, llama_pos p0, int32_t n_more) {
    if (n_more == 0 || ctx_dft == nullptr) {
        memory.seq_rm(seq, p0, -1);
        return;
    }
    common_memory target;
    target.init(ctx_tgt, nullptr);
    target.seq_rm(seq, p0, -1);

    common_memory draft;
    draft.init(ctx_dft, nullptr);
    draft.seq_rm(seq, p0 + n_more, -1);
}

} // namespace pyllm::server
