// The memory of a draft context, sequence by sequence.
#pragma once

#include "llama.h"

#include <cstdint>
#include <vector>

namespace pyllm::draft {

class cells {
public:
    // own false: the draft reads its target's cells and writes none. cuts false: a recurrent model.
    cells(llama_context * ctx, bool own, bool cuts);

    bool    own() const { return own_; }
    bool    jumps() const { return jumps_; }     // positions may be left out (M-RoPE); otherwise only an empty sequence may start anywhere
    bool    cuts() const { return cuts_; }       // any tail can be taken off; otherwise only a saved state brings an earlier one back
    bool    shifts() const { return shifts_; }
    bool    unified() const { return unified_; } // one pool for all sequences; otherwise a decode is split where they bring different numbers of rows
    int32_t per_seq() const { return per_seq_; } // cells that one sequence can have

    llama_pos begin(llama_seq_id seq) const;
    llama_pos end(llama_seq_id seq) const; // position after the last, 0: empty
    void clear(llama_seq_id seq);
    // Keeps positions [0, end). Where that is not possible the sequence is cleared, and false returned.
    bool cut(llama_seq_id seq, llama_pos end);
    // The older half of the sequence that holds most goes; positions stay, attention sees what is left. attempt: 0, 1, … for one decode.
    // False: nothing to be had.
    bool drop_old(int32_t attempt);
    // `to` gets [0, end) of `from`
    void copy(llama_seq_id from, llama_seq_id to, llama_pos end);
    bool shift(llama_seq_id seq, llama_pos n_keep, llama_pos n_discard);

    size_t state_size(llama_seq_id seq, bool partial) const;
    bool   get_state(llama_seq_id seq, bool partial, uint8_t * data, size_t size) const;
    bool   set_state(llama_seq_id seq, bool partial, const uint8_t * data, size_t size);

private:
    llama_context * ctx_;
    llama_memory_t  memory_;
    int32_t n_seq_, per_seq_;
    bool own_, jumps_, cuts_, shifts_, unified_;
};

} // namespace pyllm::draft
