#include "draft/cells.h"

#include <algorithm>

namespace pyllm::draft {

namespace {

llama_state_seq_flags to_flags(bool partial) { return partial ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : LLAMA_STATE_SEQ_FLAGS_NONE; }

bool is_mrope(const llama_context * ctx) {
    const auto rope = llama_model_rope_type(llama_get_model(ctx));
    return rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE;
}

} // namespace

cells::cells(llama_context * ctx, bool own, bool cuts)
    : ctx_(ctx), memory_(llama_get_memory(ctx)), n_seq_((int32_t) llama_n_seq_max(ctx)), per_seq_((int32_t) llama_n_ctx_seq(ctx)), own_(own), jumps_(is_mrope(ctx)),
      cuts_(!own || cuts), shifts_(!own || llama_memory_can_shift(memory_)), unified_(n_seq_ == 1 || llama_n_ctx_seq(ctx) == llama_n_ctx(ctx)) {}

llama_pos cells::begin(llama_seq_id seq) const { return std::max(0, llama_memory_seq_pos_min(memory_, seq)); }

llama_pos cells::end(llama_seq_id seq) const { return llama_memory_seq_pos_max(memory_, seq) + 1; }

void cells::clear(llama_seq_id seq) {
    if (own_) {
        llama_memory_seq_rm(memory_, seq, -1, -1);
    }
}

bool cells::cut(llama_seq_id seq, llama_pos end) {
    // A hybrid's attention may hold more than its recurrent part says: its end is that of the shorter one.
    if (!own_ || (cuts_ && this->end(seq) <= end)) {
        return true;
    }
    if (end > 0 && llama_memory_seq_rm(memory_, seq, end, -1)) {
        return true;
    }
    clear(seq);
    return end <= 0;
}

bool cells::drop_old(int32_t attempt) {
    if (!own_) {
        return false;
    }
    if (!cuts_) {
        // Of a hybrid only the last position is known: the attention's window becomes smaller with each attempt.
        const int32_t n_kept = attempt < 30 ? per_seq_ >> (attempt + 1) : 0;
        for (llama_seq_id seq = 0; n_kept > 0 && seq < n_seq_; ++seq) {
            if (end(seq) > n_kept) {
                llama_memory_seq_rm(memory_, seq, 0, end(seq) - n_kept);
            }
        }
        return n_kept > 0;
    }
    llama_seq_id largest = 0;
    int32_t      n_most  = 0;
    for (llama_seq_id seq = 0; seq < n_seq_; ++seq) {
        const int32_t n = end(seq) > 0 ? end(seq) - begin(seq) : 0;
        if (n > n_most) {
            largest = seq;
            n_most  = n;
        }
    }
    return n_most >= 2 && llama_memory_seq_rm(memory_, largest, begin(largest), begin(largest) + n_most / 2);
}

void cells::copy(llama_seq_id from, llama_seq_id to, llama_pos end) {
    if (!own_ || from == to) {
        return;
    }
    clear(to);
    if (this->end(from) == 0) {
        return;
    }
    // Buffers of their own per sequence, and recurrent state, can only be copied whole.
    llama_memory_seq_cp(memory_, from, to, -1, -1);
    cut(to, end);
}

bool cells::shift(llama_seq_id seq, llama_pos n_keep, llama_pos n_discard) {
    if (!own_) {
        return true;
    }
    if (!shifts_ || !llama_memory_seq_rm(memory_, seq, n_keep, n_keep + n_discard)) {
        clear(seq);
        return false;
    }
    llama_memory_seq_add(memory_, seq, n_keep + n_discard, -1, -n_discard);
    return true;
}

size_t cells::state_size(llama_seq_id seq, bool partial) const { return own_ ? llama_state_seq_get_size_ext(ctx_, seq, to_flags(partial)) : 0; }

bool cells::get_state(llama_seq_id seq, bool partial, uint8_t * data, size_t size) const {
    return !own_ || llama_state_seq_get_data_ext(ctx_, data, size, seq, to_flags(partial)) == size;
}

bool cells::set_state(llama_seq_id seq, bool partial, const uint8_t * data, size_t size) {
    if (!own_ || llama_state_seq_set_data_ext(ctx_, data, size, seq, to_flags(partial)) == size) {
        return true;
    }
    clear(seq); // half a state is none
    return false;
}

} // namespace pyllm::draft
