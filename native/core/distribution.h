// The distribution that the next token is drawn from: one row of logits after bias, penalties, grammar, truncation and temperature.
#pragma once

#include "core/grammar.h"
#include "pyllm.h"

#include "llama.h"

#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace pyllm {

// pyllm_sampler_params with everything that its pointers point at.
struct sampler_settings {
    pyllm_sampler_params          params = {};
    std::vector<llama_logit_bias> bias;
    std::string                   grammar_text;

    bool greedy() const { return params.temperature <= 0.0f; }
    // Of everything but the seed.
    uint64_t identity(int32_t n_vocab) const;
    // Accepted tokens that penalties look back on, at most.
    size_t n_history() const;
};

struct weighted_tokens {
    std::vector<llama_token_data> tokens; // p: weight
    double                        sum = 0.0;

    double probability(llama_token token) const;
    // The token at u in [0, 1) of the cumulated weights, in the order of `tokens`.
    llama_token at(double u) const;
};

class distribution {
public:
    distribution(const llama_vocab * vocab, const sampler_settings & settings);

    void reset();
    void accept(llama_token token);
    // The last accepted tokens: all that the penalties remember.
    const std::deque<llama_token> & history() const { return tokens; }
    void set_history(const std::vector<llama_token> & history);

    // The grammar (NULL: none) applies before truncation: p is what is left of the row's tokens once the forbidden ones are gone, so that
    // plain sampling and both kinds of verification draw from the same p. Upstream draws from the unmasked rest first and masks only if
    // that draw is forbidden; where something truncates, that is another distribution, and its second draw would break the replay of a seed.
    // Throws DECODE for a row that holds NaN or infinity, or of which no token is left.
    const weighted_tokens & of(const float * logits, const grammar * constraint, int32_t index);

private:
    using sampler = std::unique_ptr<llama_sampler, void (*)(llama_sampler *)>;

    const sampler_settings & settings;
    const llama_vocab *      vocab;
    int32_t                  n_vocab;
    std::vector<sampler>     shifting;   // change each token's logit by itself
    bool                     shifts;     // some of them do
    sampler                  sigma;      // may be NULL
    std::vector<sampler>     truncating; // drop tokens
    std::deque<llama_token>  tokens;
    weighted_tokens          result;

    llama_token best(const float * logits) const;
    void check_row(const float * logits, int32_t index) const;
    void keep_allowed(const grammar & constraint, size_t n);
    void truncate();
};

} // namespace pyllm
