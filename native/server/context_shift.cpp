#include "server/context_shift.h"

#include "log.h"

#include <cstring>

namespace pyllm {

namespace {

bool can_shift(const llama_context * ctx) {
    const llama_memory_t mem = llama_get_memory(ctx);
    return mem != nullptr && llama_memory_can_shift(mem);
}

// A cache with a sliding window declines because it is smaller than the one beside it: shifted, it has
// rows missing. A drafter can live with that, its drafts are verified. The other reasons end the
// process: several positions per token, and a RoPE that differs from layer to layer.
bool draft_can_shift(const llama_context * ctx) {
    if (can_shift(ctx)) {
        return true;
    }

    const llama_model * model = llama_get_model(ctx);

    char arch[64] = {};
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));

    switch (llama_model_rope_type(model)) {
        case LLAMA_ROPE_TYPE_NONE:
        case LLAMA_ROPE_TYPE_NORM:
        case LLAMA_ROPE_TYPE_NEOX:
            return llama_model_n_swa(model) > 0 && std::strcmp(arch, "step35") != 0;
        default:
            return false;
    }
}

} // namespace

bool can_shift(const llama_context * ctx_tgt, const llama_context * ctx_dft) {
    return can_shift(ctx_tgt) && (ctx_dft == nullptr || draft_can_shift(ctx_dft));
}

void no_shift_without_draft(common_params & params, const llama_context * ctx_dft) {
    if (ctx_dft == nullptr || draft_can_shift(ctx_dft) || (!params.ctx_shift && params.n_cache_reuse == 0)) {
        return;
    }

    char desc[128] = {};
    llama_model_desc(llama_get_model(ctx_dft), desc, sizeof(desc));
    LOG_WRN("the draft context (%s) cannot shift positions: %s%s%s disabled for target and draft\n", desc,
            params.ctx_shift ? "--context-shift" : "", params.ctx_shift && params.n_cache_reuse ? " and " : "",
            params.n_cache_reuse ? "--cache-reuse" : "");
    params.ctx_shift     = false;
    params.n_cache_reuse = 0;
}

} // namespace pyllm
