#include "core/context.h"
#include "core/error.h"

#include <cstring>

using namespace pyllm;

namespace {

// A state on the device is one per sequence: the bytes that stand for it end with its number, and only the last one written can be loaded.
constexpr size_t NUMBER = sizeof(uint64_t);

llama_state_seq_flags to_flags(int32_t flags) {
    require(flags >= PYLLM_STATE_WHOLE && flags <= (PYLLM_STATE_PARTIAL | PYLLM_STATE_DEVICE), PYLLM_INVALID_ARGUMENT,
            format("state flags %d are not 0 (whole) or 1 (partial), and 2 for the device", flags));
    return (flags & PYLLM_STATE_PARTIAL ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : 0) | (flags & PYLLM_STATE_DEVICE ? LLAMA_STATE_SEQ_FLAGS_ON_DEVICE : 0);
}

size_t state_size(context_state & state, int32_t seq, int32_t flags) {
    log_errors_clear();
    const size_t size = llama_state_seq_get_size_ext(state.ctx, seq, to_flags(flags));
    require(size > 0, flags & PYLLM_STATE_DEVICE ? PYLLM_UNSUPPORTED : PYLLM_STATE, format("the state of sequence %d cannot be taken: ", seq) + log_errors(),
            flags & PYLLM_STATE_DEVICE ? "take it to the host" : "");
    return size + (flags & PYLLM_STATE_DEVICE ? NUMBER : 0);
}

} // namespace

extern "C" {

pyllm_status pyllm_state_size(pyllm_context * handle, int32_t seq, int32_t flags, size_t * size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        *not_null(size, "size") = state_size(state, seq, flags);
    });
}

pyllm_status pyllm_state_get(pyllm_context * handle, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        not_null(data, "data");
        const size_t need = state_size(state, seq, flags);
        *not_null(size, "size") = need;
        require(need <= capacity, PYLLM_LIMIT, format("the state has %zu bytes, the buffer %zu", need, capacity));
        const size_t number = flags & PYLLM_STATE_DEVICE ? NUMBER : 0;
        const size_t got = llama_state_seq_get_data_ext(state.ctx, data, need - number, seq, to_flags(flags));
        require(got == need - number, PYLLM_INTERNAL, format("the state was announced with %zu bytes and written with %zu", need - number, got));
        if (number != 0) {
            state.device_states.resize(llama_n_seq_max(state.ctx), 0);
            const uint64_t now = ++state.n_device_states;
            state.device_states[(size_t) seq] = now;
            std::memcpy(data + got, &now, NUMBER);
        }
    });
}

pyllm_status pyllm_state_set(pyllm_context * handle, int32_t seq, int32_t flags, const uint8_t * data, size_t size) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_seq(seq);
        not_null(data, "data");
        const llama_state_seq_flags upstream_flags = to_flags(flags);
        if (flags & PYLLM_STATE_DEVICE) {
            uint64_t number = 0;
            require(size > NUMBER, PYLLM_STATE, format("%zu bytes are no state on the device", size));
            size -= NUMBER;
            std::memcpy(&number, data + size, NUMBER);
            require((size_t) seq < state.device_states.size() && state.device_states[(size_t) seq] == number, PYLLM_STATE,
                    format("the state %llu of sequence %d is not on the device any more", (unsigned long long) number, seq), "a sequence has one state there, the last that was taken");
        }
        require(size > 0, PYLLM_STATE, "the state is empty");
        log_errors_clear();
        const size_t got = llama_state_seq_set_data_ext(state.ctx, data, size, seq, upstream_flags);
        if (got != size) {
            llama_memory_seq_rm(state.memory(), seq, -1, -1); // half a state is none
            throw failure(PYLLM_STATE, format("a state of %zu bytes was not taken (%zu read): ", size, got) + log_errors(),
                          "it belongs to another model, KV type or version, or there is no room for it");
        }
    });
}

} // extern "C"
