// The last cell of a drafter whose cells hold a row of the target with the token behind it (EAGLE-3).
//
// Behind the last row there is no token yet, so that its cell is written when one comes: by a draft, or with the target's next batch. Until then
// the cell may hold a token that did not come: a rejected draft's, or that of a conversation which the next prompt leaves.
#pragma once

#include "llama.h"

namespace pyllm::draft {

// Before the rows of positions `begin` … are written, the first of them with the token `next` in front of it: cuts the memory to what is right.
// pending: position of the row without a token, -1: none. seeded: the token that the last draft wrote there.
// True: the pending row has to be written, with `next`.
inline bool cut_to_boundary(llama_context * ctx_dft, llama_seq_id seq, llama_pos pending, llama_token seeded, llama_pos begin, llama_token next) {
    const llama_memory_t memory = llama_get_memory(ctx_dft);
    const llama_pos      end    = llama_memory_seq_pos_max(memory, seq) + 1;
    if (pending >= 0 && pending + 1 == begin) {
        const bool written = seeded == next && end > pending;
        llama_memory_seq_rm(memory, seq, written ? begin : pending, -1);
        if (written || end >= pending) {
            return !written;
        }
    }
    // A memory has no gaps: rows that were never seen (an image's, or another drafter's turn) cost what stands before them.
    llama_memory_seq_rm(memory, seq, end < begin ? -1 : begin, -1);
    return false;
}

} // namespace pyllm::draft
