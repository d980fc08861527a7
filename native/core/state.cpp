#include "core/context.h"
#include "core/error.h"

using namespace pyllm;

namespace {

llama_state_seq_flags to_flags(int32_t flags) {
    require(flags == PYLLM_STATE_WHOLE || flags == PYLLM_STATE_PARTIAL, PYLLM_INVALID_ARGUMENT, format("state flags %d are not 0 (whole) or 1 (partial)", flags));
    return flags == PYLLM_STATE_PARTIAL ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : 0;
}

} // namespace

extern "C" {

pyllm_status pyllm_state_size(pyllm_context * handle, int32_t seq, int32_t flags, size_t * size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        *not_null(size, "size") = llama_state_seq_get_size_ext(state.ctx, seq, to_flags(flags));
    });
}

pyllm_status pyllm_state_get(pyllm_context * handle, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        not_null(data, "data");
        const size_t need = llama_state_seq_get_size_ext(state.ctx, seq, to_flags(flags));
        *not_null(size, "size") = need;
        require(need <= capacity, PYLLM_LIMIT, format("the state has %zu bytes, the buffer %zu", need, capacity));
        const size_t got = llama_state_seq_get_data_ext(state.ctx, data, capacity, seq, to_flags(flags));
        require(got == need, PYLLM_INTERNAL, format("the state was announced with %zu bytes and written with %zu", need, got));
    });
}

pyllm_status pyllm_state_set(pyllm_context * handle, int32_t seq, int32_t flags, const uint8_t * data, size_t size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        not_null(data, "data");
        require(size > 0, PYLLM_STATE, "the state is empty");
        log_errors_clear();
        const size_t got = llama_state_seq_set_data_ext(state.ctx, data, size, seq, to_flags(flags));
        if (got != size) {
            llama_memory_seq_rm(state.memory(), seq, -1, -1); // half a state is none
            throw failure(PYLLM_STATE, format("a state of %zu bytes was not taken (%zu read): ", size, got) + log_errors(),
                          "it belongs to another model, KV type or version, or there is no room for it");
        }
    });
}

} // extern "C"
