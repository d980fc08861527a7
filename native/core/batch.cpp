#include "core/batch.h"

#include "core/error.h"

using namespace pyllm;

extern "C" {

pyllm_status pyllm_batch_create(pyllm_context * context, pyllm_batch ** out) {
    return guard([&] {
        not_null(context, "context");
        *not_null(out, "out") = nullptr;
        *out = new pyllm_batch{ context->state, common_batch(context->state->ctx) };
    });
}

void pyllm_batch_free(pyllm_batch * batch) { delete batch; }

void pyllm_batch_clear(pyllm_batch * batch) {
    if (batch != nullptr) {
        batch->tokens.clear();
    }
}

int32_t pyllm_batch_size(const pyllm_batch * batch) { return batch == nullptr ? 0 : batch->tokens.size(); }

pyllm_status pyllm_batch_add(pyllm_batch * batch, int32_t seq, int32_t pos0, const int32_t * tokens, int32_t n_tokens, int32_t logits, int32_t * first) {
    return guard([&] {
        const context_state & state = *not_null(batch, "batch")->context;
        state.check_seq(seq);
        require(n_tokens > 0, PYLLM_INVALID_ARGUMENT, format("n_tokens %d is not positive", n_tokens));
        not_null(tokens, "tokens");
        require(pos0 >= 0 && pos0 <= INT32_MAX - n_tokens, PYLLM_INVALID_ARGUMENT, format("position %d is not in [0, %d]", pos0, INT32_MAX - n_tokens));
        require(logits >= PYLLM_LOGITS_NONE && logits <= PYLLM_LOGITS_ALL, PYLLM_INVALID_ARGUMENT, format("logits %d is not 0 (none), 1 (last) or 2 (all)", logits));
        const int32_t n_batch = (int32_t) llama_n_batch(state.ctx);
        require(batch->tokens.size() + n_tokens <= n_batch, PYLLM_LIMIT,
                format("the batch holds %d tokens, %d more are over n_batch %d", batch->tokens.size(), n_tokens, n_batch), "decode first, or raise n_batch");
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(state.model.get()));
        for (int32_t i = 0; i < n_tokens; ++i) {
            require(tokens[i] >= 0 && tokens[i] < n_vocab, PYLLM_INVALID_ARGUMENT, format("token %d at place %d is not in [0, %d)", tokens[i], i, n_vocab));
        }
        const int32_t begin = batch->tokens.size();
        for (int32_t i = 0; i < n_tokens; ++i) {
            batch->tokens.add(tokens[i], pos0 + i, seq, logits == PYLLM_LOGITS_ALL || (logits == PYLLM_LOGITS_LAST && i == n_tokens - 1));
        }
        if (first != nullptr) {
            *first = begin;
        }
    });
}

} // extern "C"
