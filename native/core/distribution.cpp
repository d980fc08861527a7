#include "core/distribution.h"

#include "core/error.h"
#include "core/fingerprint.h"

#include <algorithm>
#include <cmath>

namespace pyllm {
namespace {

const float minus_infinity = -INFINITY;

bool before(const llama_token_data & a, const llama_token_data & b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

void drop_forbidden(std::vector<llama_token_data> & tokens) {
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [](const llama_token_data & token) { return token.logit == minus_infinity; }), tokens.end());
}

} // namespace

uint64_t sampler_settings::identity(int32_t n_vocab) const {
    fingerprint print;
    const auto & p = params;
    for (const float value : { p.temperature, p.top_p, p.min_p, p.typical_p, p.top_n_sigma, p.repeat_penalty, p.frequency_penalty, p.presence_penalty, p.dry_multiplier, p.dry_base }) {
        print.add(value);
    }
    for (const int32_t value : { p.top_k, p.penalty_last_n, p.dry_allowed_length, p.dry_penalty_last_n, p.min_keep, n_vocab }) {
        print.add(value);
    }
    for (const auto & entry : bias) {
        print.add(entry.token);
        print.add(entry.bias);
    }
    return print.value();
}

size_t sampler_settings::n_history() const {
    const bool penalties = params.repeat_penalty != 1.0f || params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
    const bool dry       = params.dry_multiplier != 0.0f;
    return (size_t) std::max(penalties ? params.penalty_last_n : 0, dry ? params.dry_penalty_last_n : 0);
}

double weighted_tokens::probability(llama_token token) const {
    for (const auto & entry : tokens) {
        if (entry.id == token) {
            return (double) entry.p / sum;
        }
    }
    return 0.0;
}

llama_token weighted_tokens::at(double u) const {
    const double target = u * sum;
    double reached = 0.0;
    llama_token last = tokens.front().id;
    for (const auto & entry : tokens) {
        if (entry.p > 0.0f) {
            reached += entry.p;
            last = entry.id;
            if (reached >= target) {
                break;
            }
        }
    }
    return last;
}

distribution::distribution(const llama_vocab * vocab, const sampler_settings & settings)
    : settings(settings), vocab(vocab), n_vocab(llama_vocab_n_tokens(vocab)), sigma(nullptr, llama_sampler_free) {
    const auto & p    = settings.params;
    const auto   keep = [](std::vector<sampler> & list, llama_sampler * made) { list.emplace_back(made, llama_sampler_free); };
    std::vector<llama_logit_bias> bias = settings.bias;
    int32_t n_suppressed = 0;
    const llama_token * suppressed = llama_vocab_get_suppress_tokens(vocab, &n_suppressed);
    for (int32_t i = 0; i < n_suppressed; ++i) {
        bias.push_back({ suppressed[i], minus_infinity });
    }
    // The order is upstream's: bias, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, temperature.
    shifts = !bias.empty() || p.repeat_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f || p.dry_multiplier != 0.0f;
    if (!bias.empty()) {
        keep(shifting, llama_sampler_init_logit_bias(n_vocab, (int32_t) bias.size(), bias.data()));
    }
    keep(shifting, llama_sampler_init_penalties(n_vocab, p.penalty_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty));
    if (p.dry_multiplier != 0.0f) {
        const char * breakers[] = { "\n", ":", "\"", "*" };
        keep(shifting, llama_sampler_init_dry(vocab, p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n, breakers, 4));
    }
    if (p.top_n_sigma > 0.0f) {
        sigma.reset(llama_sampler_init_top_n_sigma(p.top_n_sigma));
    }
    keep(truncating, llama_sampler_init_top_k(p.top_k));
    if (p.typical_p < 1.0f) {
        keep(truncating, llama_sampler_init_typical(p.typical_p, (size_t) p.min_keep));
    }
    keep(truncating, llama_sampler_init_top_p(p.top_p, (size_t) p.min_keep));
    keep(truncating, llama_sampler_init_min_p(p.min_p, (size_t) p.min_keep));
}

void distribution::reset() {
    tokens.clear();
    for (const auto & step : shifting) {
        llama_sampler_reset(step.get());
    }
}

void distribution::accept(llama_token token) {
    for (const auto & step : shifting) {
        llama_sampler_accept(step.get(), token);
    }
    tokens.push_back(token);
    if (tokens.size() > settings.n_history()) {
        tokens.pop_front();
    }
}

void distribution::set_history(const std::vector<llama_token> & history) {
    reset();
    for (const llama_token token : history) {
        accept(token);
    }
}

void distribution::check_row(const float * logits, int32_t index) const {
    for (int32_t id = 0; id < n_vocab; ++id) {
        if (std::isfinite(logits[id])) {
            return;
        }
    }
    throw failure(PYLLM_DECODE, format("no finite logit at batch entry %d: the model computed nothing usable", index), "decode again; if it stays, the model or its quantisation is broken");
}

// Tokens of the row that the grammar allows. Where the k best are enough, it is asked about the best first: it costs as much as there are tokens.
void distribution::keep_allowed(const grammar & constraint, size_t n) {
    auto & list = result.tokens;
    const bool all = n == 0 || n >= list.size();
    if (all) {
        constraint.mask(list.data(), list.size());
        drop_forbidden(list);
        return;
    }
    size_t kept = 0;
    size_t done = 0;
    for (size_t step = 4 * n + 64; kept < n && done < list.size(); step *= 4) {
        const size_t end = std::min(list.size(), done + step);
        std::partial_sort(list.begin() + (ptrdiff_t) done, list.begin() + (ptrdiff_t) end, list.end(), before);
        constraint.mask(list.data() + done, end - done);
        for (; done < end; ++done) {
            if (list[done].logit != minus_infinity && kept < n) {
                list[kept++] = list[done];
            }
        }
    }
    list.resize(kept);
}

void distribution::truncate() {
    auto & list = result.tokens;
    llama_token_data_array array = { list.data(), list.size(), -1, false };
    if (sigma != nullptr) {
        llama_sampler_apply(sigma.get(), &array);
        drop_forbidden(list);
        array = { list.data(), list.size(), -1, false };
    }
    if (settings.params.typical_p < 1.0f) {
        // Upstream takes the logarithm of each probability; one that is zero as a float would make every score NaN.
        const float top = std::min_element(list.begin(), list.end(), before)->logit;
        list.erase(std::remove_if(list.begin(), list.end(), [&](const llama_token_data & token) { return std::exp(token.logit - top) < 1e-37f; }), list.end());
        array = { list.data(), list.size(), -1, false };
    }
    for (const auto & step : truncating) {
        llama_sampler_apply(step.get(), &array);
    }
    list.resize(array.size);
}

// The token of the highest logit, the first of several, without a list of the vocabulary; -1 for a row that has none, or a NaN or an infinity.
llama_token distribution::best(const float * logits) const {
    constexpr int32_t lanes = 16; // independent of each other, as a maximum of floats has to be to be taken of several at once
    float   highest[lanes];
    int32_t bad[lanes] = {};
    std::fill_n(highest, lanes, minus_infinity);
    const auto see = [&](int32_t lane, float logit) {
        highest[lane] = logit > highest[lane] ? logit : highest[lane];
        bad[lane] |= !(logit < INFINITY);
    };
    int32_t id = 0;
    for (; id + lanes <= n_vocab; id += lanes) {
        for (int32_t lane = 0; lane < lanes; ++lane) {
            see(lane, logits[id + lane]);
        }
    }
    for (; id < n_vocab; ++id) {
        see(0, logits[id]);
    }
    const float top = *std::max_element(highest, highest + lanes);
    if (top == minus_infinity || std::any_of(bad, bad + lanes, [](int32_t is) { return is != 0; })) {
        return -1;
    }
    return (llama_token) (std::find(logits, logits + n_vocab, top) - logits);
}

const weighted_tokens & distribution::of(const float * logits, const grammar * constraint, int32_t index) {
    auto & list = result.tokens;
    const auto & p = settings.params;
    const bool best_only = settings.greedy() && p.typical_p >= 1.0f;
    if (best_only && !shifts && constraint == nullptr) {
        const llama_token token = best(logits);
        if (token >= 0) {
            list.assign(1, { token, logits[token], 1.0f });
            result.sum = 1.0;
            return result;
        } // what is wrong with the row is found below
    }
    list.resize((size_t) n_vocab);
    for (int32_t id = 0; id < n_vocab; ++id) {
        list[(size_t) id] = { id, logits[id], 0.0f };
    }
    llama_token_data_array array = { list.data(), list.size(), -1, false };
    for (const auto & step : shifting) {
        llama_sampler_apply(step.get(), &array);
    }
    // A comparison with NaN has no order: sorting such a row would run out of it.
    for (const auto & token : list) {
        if (std::isnan(token.logit) || token.logit == INFINITY) {
            check_row(logits, index);
            throw failure(PYLLM_DECODE, format("the logit of token %d at batch entry %d is %g (%g before penalties)", token.id, index, (double) token.logit, (double) logits[token.id]),
                          "decode again; if it stays, the model or its quantisation is broken");
        }
    }
    drop_forbidden(list);
    if (list.empty()) {
        check_row(logits, index);
        throw failure(PYLLM_DECODE, format("no token is left at batch entry %d: biases forbid all", index), "forbid fewer tokens");
    }
    if (constraint != nullptr) {
        keep_allowed(*constraint, best_only ? 1 : sigma == nullptr && p.top_k > 0 ? (size_t) p.top_k : 0);
        require(!list.empty(), PYLLM_DECODE, format("no token is left at batch entry %d: the grammar allows none of this vocabulary here", index),
                "let the grammar go on here, or do not forbid the end-of-text tokens (ignore_eos)");
    }
    if (!best_only) {
        truncate();
    }
    const llama_token_data best = *std::min_element(list.begin(), list.end(), before);
    result.sum = 0.0;
    if (settings.greedy()) {
        list.assign(1, best);
        list.front().p = 1.0f;
        result.sum = 1.0;
        return result;
    }
    // A very small temperature makes a quotient infinite; then the difference is taken first, whose zero stays zero.
    const float top = best.logit / p.temperature;
    for (auto & token : list) {
        token.p = std::isfinite(top) ? std::exp(token.logit / p.temperature - top) : std::exp((token.logit - best.logit) / p.temperature);
        result.sum += (double) token.p;
    }
    return result;
}

} // namespace pyllm
