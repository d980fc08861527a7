#include "core/context.h"
#include "core/error.h"

using namespace pyllm;

namespace {

void check_range(int32_t begin, int32_t end) {
    require(begin >= 0 && (end == -1 || end >= begin), PYLLM_INVALID_ARGUMENT, format("[%d, %d) is not a range of positions", begin, end));
}

} // namespace

extern "C" {

pyllm_status pyllm_memory_clear(pyllm_context * handle) {
    return guard([&] { llama_memory_clear(not_null(handle, "context")->state->memory(), true); });
}

pyllm_status pyllm_memory_remove(pyllm_context * handle, int32_t seq, int32_t begin, int32_t end) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        check_range(begin, end);
        llama_memory_t memory = state.memory();
        // Upstream reads (0, -1) as the whole sequence, which every kind of memory can drop.
        if (!llama_memory_seq_rm(memory, seq, begin == 0 && end == -1 ? -1 : begin, end)) {
            throw failure(PYLLM_UNSUPPORTED,
                          format("positions [%d, %d) of sequence %d cannot be removed: it holds up to %d and can be cut back by %u tokens", begin, end, seq,
                                 llama_memory_seq_pos_max(memory, seq), llama_n_rs_seq(state.ctx)),
                          "restore a checkpoint, or remove the whole sequence and decode it again");
        }
    });
}

pyllm_status pyllm_memory_copy(pyllm_context * handle, int32_t from_seq, int32_t to_seq, int32_t begin, int32_t end) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(from_seq);
        state.check_seq(to_seq);
        check_range(begin, end);
        // Buffers of their own per sequence can only be copied whole; upstream asserts on it.
        require(state.kv_unified || (begin == 0 && end == -1), PYLLM_UNSUPPORTED, format("[%d, %d) is a part of a sequence, and the cache is not unified", begin, end),
                "copy the whole sequence (0, -1), or create the context with kv_unified");
        llama_memory_seq_cp(state.memory(), from_seq, to_seq, begin == 0 ? -1 : begin, end);
    });
}

pyllm_status pyllm_memory_keep(pyllm_context * handle, int32_t seq) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        for (int32_t other = 0; other < (int32_t) llama_n_seq_max(state.ctx); ++other) {
            if (other != seq) {
                llama_memory_seq_rm(state.memory(), other, -1, -1);
            }
        }
    });
}

pyllm_status pyllm_memory_shift(pyllm_context * handle, int32_t seq, int32_t begin, int32_t end, int32_t delta) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        check_range(begin, end);
        require(begin + delta >= 0, PYLLM_INVALID_ARGUMENT, format("shifting position %d by %d makes it negative", begin, delta));
        require(llama_memory_can_shift(state.memory()), PYLLM_UNSUPPORTED, "the positions of this model's memory cannot be shifted",
                "run without context shift: use a larger context, or end the request when it is full");
        llama_memory_seq_add(state.memory(), seq, begin, end, delta);
    });
}

pyllm_status pyllm_memory_range(pyllm_context * handle, int32_t seq, int32_t * first, int32_t * last) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        *not_null(first, "first") = llama_memory_seq_pos_min(state.memory(), seq);
        *not_null(last, "last")   = llama_memory_seq_pos_max(state.memory(), seq);
    });
}

} // extern "C"
