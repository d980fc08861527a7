#include "draft/rollback.h"

#include <algorithm>

namespace pyllm {

uint32_t rollback_depth(const common_params_speculative & spec) {
    int32_t depth = 0;
    for (const auto type : spec.types) {
        switch (type) {
            case COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE:
                depth = std::max(depth, std::min<int32_t>(spec.ngram_simple.size_m, RECURRENT_NGRAM_DEPTH));
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K:
                depth = std::max(depth, std::min<int32_t>(spec.ngram_map_k.size_m, RECURRENT_NGRAM_DEPTH));
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V:
                depth = std::max(depth, std::min<int32_t>(spec.ngram_map_k4v.size_m, RECURRENT_NGRAM_DEPTH));
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MOD:
                depth = std::max(depth, std::min(spec.ngram_mod.n_max, RECURRENT_NGRAM_DEPTH));
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_CACHE:
                depth = std::max(depth, RECURRENT_NGRAM_DEPTH); // its drafts have this length
                break;
            case COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE:
            case COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3:
            case COMMON_SPECULATIVE_TYPE_DRAFT_MTP:
            case COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH:
            case COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK:
                depth = std::max(depth, spec.draft.n_max);
                break;
            default:
                break;
        }
    }
    return (uint32_t) depth;
}

int32_t within_rollback(const llama_context * ctx, int32_t n_draft) {
    const int32_t n_snapshots = (int32_t) llama_n_rs_seq(ctx);
    return n_snapshots > 0 ? std::min(n_draft, n_snapshots) : n_draft;
}

} // namespace pyllm
