#include "draft/context_size.h"

#include "log.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace pyllm {

namespace {

// the block size a drafter was trained with, 0: the model does not draft in blocks
int32_t trained_block_size(const llama_model * model) {
    char buf[32] = {};
    if (llama_model_meta_val_str(model, "general.architecture", buf, sizeof(buf)) < 0 || std::strcmp(buf, "dflash") != 0) {
        return 0;
    }
    if (llama_model_meta_val_str(model, "dflash.block_size", buf, sizeof(buf)) < 0) {
        return 16; // the format's default
    }
    return std::max(1, std::atoi(buf));
}

} // namespace

int32_t block_tokens(const llama_model * model_dft, int32_t n_max) {
    // DSpark may draft one token from the anchor itself: block_size tokens instead of block_size - 1,
    // in a block without the extra position. One more than needed in that case is harmless.
    return std::min(std::max(0, n_max), trained_block_size(model_dft)) + 1;
}

void size_block_context(llama_context_params & cparams, const llama_model * model_dft, int32_t n_max, int32_t n_seq) {
    if (trained_block_size(model_dft) == 0) {
        return;
    }

    const uint32_t per_seq = block_tokens(model_dft, n_max);
    const uint32_t total   = per_seq * (uint32_t) std::max(1, n_seq);

    // n_ubatch 0 means "as n_batch"
    if (total > cparams.n_batch || (cparams.n_ubatch > 0 && total > cparams.n_ubatch)) {
        LOG_INF("draft context: batch of %u tokens holds the blocks of %d slots x %u tokens (n_batch %u, n_ubatch %u were asked for)\n",
                total, n_seq, per_seq, cparams.n_batch, cparams.n_ubatch);
    }
    cparams.n_batch = std::max(cparams.n_batch, total);
    if (cparams.n_ubatch > 0) {
        cparams.n_ubatch = std::max(cparams.n_ubatch, total);
    }

    cparams.n_outputs_max = total;
    if (cparams.n_outputs_max_per_seq > 1) {
        cparams.n_outputs_max_per_seq = per_seq;
    }
}

void size_rollback_context(llama_context_params & cparams) {
    if (cparams.n_rs_seq == 0) {
        return;
    }

    const uint32_t n_min = cparams.n_rs_seq + 2;

    cparams.n_batch = std::max(cparams.n_batch, n_min);
    if (cparams.n_ubatch > 0 && cparams.n_ubatch < n_min) { // 0 means "as n_batch"
        LOG_INF("context: micro-batch raised from %u to %u tokens to hold a rollback of %u\n",
                cparams.n_ubatch, n_min, cparams.n_rs_seq);
        cparams.n_ubatch = n_min;
    }
}

} // namespace pyllm
