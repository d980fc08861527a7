#include "draft/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyllm::draft {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// in [0, 1), 53 bits; neighbouring counters give independent numbers (splitmix64)
double uniform(uint64_t seed, uint64_t counter) {
    uint64_t z = (seed ^ 0x9e3779b97f4a7c15ull) + (counter + 1) * 0x9e3779b97f4a7c15ull;
    for (int i = 0; i < 2; ++i) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        z ^= z >> 31;
    }
    return (double) (z >> 11) * 0x1p-53;
}

std::string not_finite(int32_t id, float logit) {
    return "the drafter's output is not finite: the logit of token " + std::to_string(id) + " is " + (std::isnan(logit) ? "NaN" : "infinite");
}

} // namespace

void candidates::add(int32_t id, float logit) {
    if (n == PYLLM_DRAFT_CANDIDATES) {
        if (!(logit > logits[n - 1])) {
            return;
        }
        --n;
    }
    int32_t place = n++;
    for (; place > 0 && logits[place - 1] < logit; --place) {
        ids[place]    = ids[place - 1];
        logits[place] = logits[place - 1];
    }
    ids[place]    = id;
    logits[place] = logit;
}

std::string read_candidates(llama_context * ctx, int32_t index, int32_t n_vocab, candidates & found) {
    found.n = 0;
    const float * logits = llama_get_sampled_logits_ith(ctx, index); // waits for the device
    if (logits != nullptr) {
        const llama_token * ids = llama_get_sampled_candidates_ith(ctx, index);
        const uint32_t n = llama_get_sampled_logits_count_ith(ctx, index);
        for (uint32_t i = 0; i < n; ++i) {
            if (std::isnan(logits[i]) || logits[i] == -minus_infinity) {
                return not_finite(ids[i], logits[i]);
            }
            if (ids[i] >= 0 && ids[i] < n_vocab && logits[i] > minus_infinity) {
                found.add(ids[i], logits[i]);
            }
        }
    } else {
        logits = llama_get_logits_ith(ctx, index);
        if (logits == nullptr) {
            return "the drafter gave no output";
        }
        float least = minus_infinity; // of the candidates, once there are enough of them
        for (int32_t id = 0; id < n_vocab; ++id) {
            if (logits[id] <= least) {
                continue;
            }
            if (std::isnan(logits[id]) || logits[id] == -minus_infinity) {
                return not_finite(id, logits[id]);
            }
            found.add(id, logits[id]);
            least = found.n == PYLLM_DRAFT_CANDIDATES ? found.logits[found.n - 1] : minus_infinity;
        }
    }
    return found.n > 0 ? "" : "the drafter allows no token: every logit is -inf";
}

float confidence(const candidates & from) {
    float sum = 0.0f;
    for (int32_t i = 0; i < from.n; ++i) {
        sum += std::exp(from.logits[i] - from.logits[0]);
    }
    return 1.0f / sum;
}

int32_t choose(const candidates & from, float temperature, uint64_t seed, llama_pos pos, int32_t * q_ids, float * q_probs) {
    float   probs[PYLLM_DRAFT_CANDIDATES] = { 1.0f };
    int32_t chosen = 0;
    if (temperature > 0.0f && q_ids != nullptr && q_probs != nullptr) {
        double sum = 0.0;
        for (int32_t i = 0; i < from.n; ++i) {
            sum += probs[i] = std::exp((from.logits[i] - from.logits[0]) / temperature);
        }
        double left = uniform(seed, (uint64_t) pos) * sum;
        for (int32_t i = 0; i < from.n; ++i) {
            if (probs[i] > 0.0f) {
                chosen = i; // the last one that can be drawn, should rounding leave a rest
                if ((left -= probs[i]) < 0.0) {
                    break;
                }
            }
        }
        for (int32_t i = 0; i < from.n; ++i) {
            probs[i] = (float) (probs[i] / sum);
        }
    }
    if (q_ids != nullptr && q_probs != nullptr) {
        for (int32_t i = 0; i < PYLLM_DRAFT_CANDIDATES; ++i) {
            const bool used = i < from.n && probs[i] > 0.0f;
            q_ids[i]   = used ? from.ids[i] : -1;
            q_probs[i] = used ? probs[i] : 0.0f;
        }
    }
    return chosen;
}

device_samplers::device_samplers(llama_context * ctx, int32_t n_seq, bool wanted) : ctx_(ctx), chains_(wanted ? (size_t) n_seq : 0, nullptr) {
    for (size_t seq = 0; seq < chains_.size(); ++seq) {
        llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(PYLLM_DRAFT_CANDIDATES));
        if (llama_set_sampler(ctx, (llama_seq_id) seq, chain)) {
            chains_[seq] = chain;
        } else {
            llama_sampler_free(chain);
        }
    }
}

device_samplers::~device_samplers() {
    for (size_t seq = 0; seq < chains_.size(); ++seq) {
        if (chains_[seq] != nullptr) {
            llama_set_sampler(ctx_, (llama_seq_id) seq, nullptr);
            llama_sampler_free(chains_[seq]);
        }
    }
}

} // namespace pyllm::draft
