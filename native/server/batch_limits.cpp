#include "server/batch_limits.h"

#include "log.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace pyllm {

namespace {

// flags that set a draft length above limit, "" where the length is not the user's to choose
std::vector<std::string> depth_flags_above(const common_params_speculative & spec, int32_t limit) {
    std::vector<std::string> flags;

    const auto add = [&](const char * flag, int32_t value) {
        if (value > limit && std::find(flags.begin(), flags.end(), flag) == flags.end()) {
            flags.emplace_back(flag);
        }
    };

    for (const auto type : spec.types) {
        switch (type) {
            case COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE:
            case COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3:
            case COMMON_SPECULATIVE_TYPE_DRAFT_MTP:
            case COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH:
            case COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK:
                add("--spec-draft-n-max", spec.draft.n_max);
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE:
                add("--spec-ngram-simple-size-m", spec.ngram_simple.size_m);
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K:
                add("--spec-ngram-map-k-size-m", spec.ngram_map_k.size_m);
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V:
                add("--spec-ngram-map-k4v-size-m", spec.ngram_map_k4v.size_m);
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_MOD:
                add("--spec-ngram-mod-n-max", spec.ngram_mod.n_max);
                break;
            case COMMON_SPECULATIVE_TYPE_NGRAM_CACHE:
                add("", 8);
                break;
            default:
                break;
        }
    }

    return flags;
}

std::string ways_out(const common_params & params, int32_t n_batch, int32_t n_draft, int32_t n_need) {
    std::vector<std::string> ways;

    // the batch of a causal model is never larger than its context
    ways.push_back(n_batch < params.n_batch ? string_format("-c %d or more", n_need)
                                            : string_format("-b %d or more", n_need));

    // the longest drafts that fit; there is no such way out if a drafter has a fixed length
    const int32_t depth = n_batch / params.n_parallel - 1;
    const auto    flags = depth_flags_above(params.speculative, depth);
    if (depth >= 1 && !flags.empty() && std::find(flags.begin(), flags.end(), "") == flags.end()) {
        std::string way;
        for (const auto & flag : flags) {
            way += (way.empty() ? "" : " and ") + string_format("%s %d or less", flag.c_str(), depth);
        }
        ways.push_back(way);
    }

    const int32_t n_slots = n_batch / (1 + n_draft);
    if (n_slots >= 1) {
        ways.push_back(string_format("-np %d%s", n_slots, n_slots > 1 ? " or less" : ""));
    }

    std::string text;
    for (size_t i = 0; i < ways.size(); ++i) {
        text += (i == 0 ? "" : i + 1 < ways.size() ? ", " : ", or ") + ways[i];
    }
    return text;
}

} // namespace

bool batch_holds_slots(const common_params & params) {
    if (params.n_parallel <= params.n_batch) {
        return true;
    }

    LOG_ERR("error: batch of %d tokens cannot hold one token of each of %d slots\n\nhint: use -b %d or more, or -np %d or less\n",
            params.n_batch, params.n_parallel, params.n_parallel, params.n_batch);
    return false;
}

bool batch_holds_drafts(const common_params & params, int32_t n_batch, int32_t n_draft) {
    const int64_t n_need = (int64_t) params.n_parallel * (1 + (int64_t) n_draft);
    if (n_draft <= 0 || n_need <= n_batch) {
        return true;
    }

    LOG_ERR("error: batch of %d tokens cannot hold %d %s × (1 + %d draft tokens) = %lld\n\nhint: use %s\n",
            n_batch, params.n_parallel, params.n_parallel == 1 ? "slot" : "slots", n_draft, (long long) n_need,
            ways_out(params, n_batch, n_draft, (int32_t) n_need).c_str());
    return false;
}

} // namespace pyllm
