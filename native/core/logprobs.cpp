#include "core/context.h"
#include "core/error.h"

#include <algorithm>
#include <cmath>

using namespace pyllm;

namespace {
constexpr int32_t max_top = 128;
}

extern "C" {

pyllm_status pyllm_context_get_logprobs(pyllm_context * handle, int32_t index, int32_t token, int32_t n_top, float * logprob, int32_t * top_ids, float * top_logprobs) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        state.check_output(index);
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(state.model.get()));
        const int32_t limit   = std::min(max_top, n_vocab);
        require(token >= -1 && token < n_vocab, PYLLM_INVALID_ARGUMENT, format("token %d is not in [0, %d), or -1 for none", token, n_vocab));
        require(n_top >= 0 && n_top <= limit, PYLLM_INVALID_ARGUMENT, format("n_top %d is not in [0, %d]", n_top, limit));
        require(n_top == 0 || (top_ids != nullptr && top_logprobs != nullptr), PYLLM_INVALID_ARGUMENT, "top_ids or top_logprobs is NULL");
        const float * row = not_null(llama_get_logits_ith(state.ctx, index), "logits");

        // One pass: the sum of exponentials is kept relative to the largest logit so far, the best are kept in a heap whose front is the worst of them.
        using entry = std::pair<float, int32_t>;
        const auto better = [](const entry & a, const entry & b) { return a.first != b.first ? a.first > b.first : a.second < b.second; };
        std::vector<entry> best;
        double top = -INFINITY;
        double sum = 0.0;
        for (int32_t id = 0; id < n_vocab; ++id) {
            const float logit = row[id];
            require(!std::isnan(logit) && logit != INFINITY, PYLLM_DECODE, format("the logit of token %d at batch entry %d is %g", id, index, (double) logit),
                    "decode again; if it stays, the model or its quantisation is broken");
            if (logit > top) {
                sum = sum * std::exp(top - (double) logit) + 1.0;
                top = (double) logit;
            } else if (logit != -INFINITY) {
                sum += std::exp((double) logit - top);
            }
            if (n_top > 0 && ((int32_t) best.size() < n_top || better({ logit, id }, best.front()))) {
                if ((int32_t) best.size() == n_top) {
                    std::pop_heap(best.begin(), best.end(), better);
                    best.pop_back();
                }
                best.emplace_back(logit, id);
                std::push_heap(best.begin(), best.end(), better);
            }
        }
        require(sum > 0.0, PYLLM_DECODE, format("no finite logit at batch entry %d: the model computed nothing usable", index), "decode again; if it stays, the model or its quantisation is broken");
        const double log_sum = std::log(sum); // relative to top: beside a large logit it would be lost
        std::sort(best.begin(), best.end(), better);
        for (int32_t i = 0; i < n_top; ++i) {
            top_ids[i]      = best[(size_t) i].second;
            top_logprobs[i] = (float) ((double) best[(size_t) i].first - top - log_sum);
        }
        if (token >= 0) {
            *not_null(logprob, "logprob") = (float) ((double) row[token] - top - log_sum);
        }
    });
}

} // extern "C"
