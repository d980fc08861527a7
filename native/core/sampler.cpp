#include "core/context.h"
#include "core/error.h"
#include "core/model.h"

#include "sampling.h"

#include <cmath>

struct pyllm_sampler {
    std::shared_ptr<llama_model> model;
    common_sampler_ptr           sampler;
    int32_t                      n_vocab;
};

using namespace pyllm;

namespace {

void check_number(float value, float low, float high, const char * name) {
    require(std::isfinite(value) && value >= low && value <= high, PYLLM_INVALID_ARGUMENT,
            format("%s %g is not in [%g, %g]", name, (double) value, (double) low, (double) high));
}

} // namespace

extern "C" {

pyllm_sampler_params pyllm_sampler_params_default(void) {
    pyllm_sampler_params params = {};
    params.seed           = LLAMA_DEFAULT_SEED;
    params.temperature    = 0.8f;
    params.top_k          = 40;
    params.top_p          = 0.95f;
    params.min_p          = 0.05f;
    params.repeat_penalty = 1.0f;
    params.penalty_last_n = 64;
    return params;
}

pyllm_status pyllm_sampler_create(pyllm_model * model, const pyllm_sampler_params * params, pyllm_sampler ** out) {
    return guard([&] {
        not_null(model, "model");
        not_null(params, "params");
        *not_null(out, "out") = nullptr;
        check_number(params->temperature, -1e6f, 1e6f, "temperature");
        check_number(params->top_p, 0.0f, 1.0f, "top_p");
        check_number(params->min_p, 0.0f, 1.0f, "min_p");
        check_number(params->repeat_penalty, 1e-6f, 1e6f, "repeat_penalty");
        check_number(params->frequency_penalty, -1e6f, 1e6f, "frequency_penalty");
        check_number(params->presence_penalty, -1e6f, 1e6f, "presence_penalty");
        require(params->penalty_last_n >= 0 && params->penalty_last_n <= (1 << 24), PYLLM_INVALID_ARGUMENT, format("penalty_last_n %d is not in [0, 16777216]", params->penalty_last_n));

        common_params_sampling sampling;
        sampling.seed            = params->seed;
        sampling.temp            = params->temperature;
        sampling.top_k           = params->top_k;
        sampling.top_p           = params->top_p;
        sampling.min_p           = params->min_p;
        sampling.penalty_repeat  = params->repeat_penalty;
        sampling.penalty_freq    = params->frequency_penalty;
        sampling.penalty_present = params->presence_penalty;
        sampling.penalty_last_n  = params->penalty_last_n;
        sampling.no_perf         = true;
        if (params->grammar != nullptr && *params->grammar != '\0') {
            sampling.grammar = common_grammar(COMMON_GRAMMAR_TYPE_USER, params->grammar);
        }
        if (params->ignore_eos) {
            const llama_vocab * vocab = model->vocab();
            for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
                if (llama_vocab_is_eog(vocab, id)) {
                    sampling.logit_bias.push_back({ id, -INFINITY });
                }
            }
        }
        log_errors_clear();
        common_sampler_ptr sampler;
        try {
            sampler.reset(common_sampler_init(model->model.get(), sampling));
        } catch (const std::exception & e) {
            throw failure(PYLLM_INVALID_ARGUMENT, std::string("the sampler could not be made: ") + e.what() + " " + log_errors(), "check the grammar: it has to be GBNF with a rule `root`");
        }
        require(sampler != nullptr, PYLLM_INVALID_ARGUMENT, "the sampler could not be made: " + log_errors(), "check the grammar: it has to be GBNF with a rule `root`");
        *out = new pyllm_sampler{ model->model, std::move(sampler), model->n_vocab() };
    });
}

void pyllm_sampler_free(pyllm_sampler * sampler) { delete sampler; }

pyllm_status pyllm_sampler_reset(pyllm_sampler * sampler) {
    return guard([&] { common_sampler_reset(not_null(sampler, "sampler")->sampler.get()); });
}

pyllm_status pyllm_sampler_accept(pyllm_sampler * sampler, const int32_t * tokens, int32_t n_tokens, bool generated) {
    return guard([&] {
        not_null(sampler, "sampler");
        require(n_tokens >= 0 && (n_tokens == 0 || tokens != nullptr), PYLLM_INVALID_ARGUMENT, "tokens is NULL or n_tokens negative");
        for (int32_t i = 0; i < n_tokens; ++i) {
            require(tokens[i] >= 0 && tokens[i] < sampler->n_vocab, PYLLM_INVALID_ARGUMENT, format("token %d at place %d is not in [0, %d)", tokens[i], i, sampler->n_vocab));
        }
        for (int32_t i = 0; i < n_tokens; ++i) {
            common_sampler_accept(sampler->sampler.get(), tokens[i], generated);
        }
    });
}

pyllm_status pyllm_sampler_verify(pyllm_sampler * sampler, pyllm_context * context, int32_t index, const int32_t * draft, int32_t n_draft,
                                  int32_t * tokens, int32_t * n_tokens) {
    return guard([&] {
        not_null(sampler, "sampler");
        const context_state & state = *not_null(context, "context")->state;
        not_null(tokens, "tokens");
        not_null(n_tokens, "n_tokens");
        require(state.model == sampler->model, PYLLM_INVALID_ARGUMENT, "the sampler was made for another model");
        require(n_draft >= 0 && (n_draft == 0 || draft != nullptr), PYLLM_INVALID_ARGUMENT, format("n_draft %d is negative, or draft is NULL", n_draft));
        std::vector<int>  idxs;
        for (int32_t i = 0; i <= n_draft; ++i) {
            state.check_output(index + i);
            idxs.push_back(index + i);
        }
        const llama_tokens drafted(draft, draft + n_draft);
        const llama_tokens ids = common_sampler_sample_and_accept_n(sampler->sampler.get(), state.ctx, idxs, drafted);
        require(!ids.empty() && (int32_t) ids.size() <= n_draft + 1, PYLLM_INTERNAL, format("verification of %d drafted tokens returned %zu", n_draft, ids.size()));
        for (const llama_token id : ids) {
            require(id >= 0 && id < sampler->n_vocab, PYLLM_DECODE, format("the sampler returned token %d: the logits hold no finite value", id));
        }
        std::copy(ids.begin(), ids.end(), tokens);
        *n_tokens = (int32_t) ids.size();
    });
}

} // extern "C"
