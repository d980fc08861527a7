#pragma once

// Logits that are numbers. What divides by a sum of NaN asserts or picks the last token of the vocabulary; neither is an answer.

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyllm {

// Throws if a candidate's logit is NaN or +inf, or if all of them are -inf (a single -inf is a banned token). Reads `logit` and `id` of n candidates.
template <class Candidate>
void require_finite(const Candidate * candidates, size_t n) {
    constexpr float inf = std::numeric_limits<float>::infinity();

    bool any = n == 0;
    for (size_t i = 0; i < n; ++i) {
        const float logit = candidates[i].logit;
        if (!(logit < inf)) { // NaN compares false
            throw std::runtime_error("the model's output is not finite: the logit of token " + std::to_string(candidates[i].id) + " is " + (logit == inf ? "infinite" : "NaN"));
        }
        any = any || logit > -inf;
    }
    if (!any) {
        throw std::runtime_error("the model's output is not finite: the logit of every token is -inf");
    }
}

} // namespace pyllm
