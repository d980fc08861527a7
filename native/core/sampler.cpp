#include "core/context.h"
#include "core/distribution.h"
#include "core/error.h"
#include "core/model.h"
#include "core/random_stream.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace pyllm;

namespace {

constexpr uint32_t state_magic   = 0x53535950; // "PYSS"
constexpr uint32_t state_version = 1;
constexpr uint64_t max_drawn     = 1u << 26;   // numbers that restoring a state has to draw again: half a second
constexpr uint32_t test_stream   = 0x5bd1e995; // tells the seed of accept tests from that of tokens

uint32_t any_seed(uint32_t seed) { return seed == LLAMA_DEFAULT_SEED ? std::random_device()() : seed; }

} // namespace

struct pyllm_sampler {
    std::shared_ptr<llama_model> model;
    const llama_vocab *          vocab;
    int32_t                      n_vocab;
    const sampler_settings       settings;
    distribution                 next;
    std::unique_ptr<grammar>     constraint;
    random_stream                draws; // one number per token that is drawn from p
    random_stream                tests; // accept tests of rejection sampling, and its draws from the residual

    pyllm_sampler(std::shared_ptr<llama_model> owner, sampler_settings given)
        : model(std::move(owner)), vocab(llama_model_get_vocab(model.get())), n_vocab(llama_vocab_n_tokens(vocab)), settings(std::move(given)), next(vocab, settings),
          draws(any_seed(settings.params.seed)), tests(draws.seed() ^ test_stream) {
        if (!settings.grammar_text.empty()) {
            constraint = std::make_unique<grammar>(vocab, settings.grammar_text);
        }
    }

    void restart(uint32_t seed, uint64_t drawn, uint64_t tested) {
        draws = random_stream(seed, drawn);
        tests = random_stream(seed ^ test_stream, tested);
    }

    void accept(llama_token token, bool generated) {
        if (generated && constraint != nullptr) {
            constraint->accept(token);
        }
        next.accept(token);
    }
};

namespace {

void check_number(float value, float low, float high, const char * name) {
    require(std::isfinite(value) && value >= low && value <= high, PYLLM_INVALID_ARGUMENT,
            format("%s %g is not in [%g, %g]", name, (double) value, (double) low, (double) high), "give a number in that range");
}

void check_count(int32_t value, int32_t low, int32_t high, const char * name) {
    require(value >= low && value <= high, PYLLM_INVALID_ARGUMENT, format("%s %d is not in [%d, %d]", name, value, low, high), "give a number in that range");
}

sampler_settings check_settings(const pyllm_model & model, const pyllm_sampler_params & params) {
    check_number(params.temperature, -1e6f, 1e6f, "temperature");
    check_number(params.top_p, 0.0f, 1.0f, "top_p");
    check_number(params.min_p, 0.0f, 1.0f, "min_p");
    check_number(params.typical_p, 0.0f, 1.0f, "typical_p");
    check_number(params.top_n_sigma, -1.0f, 1e6f, "top_n_sigma");
    check_number(params.repeat_penalty, 1e-6f, 1e6f, "repeat_penalty");
    check_number(params.frequency_penalty, -1e6f, 1e6f, "frequency_penalty");
    check_number(params.presence_penalty, -1e6f, 1e6f, "presence_penalty");
    check_count(params.penalty_last_n, 0, 1 << 24, "penalty_last_n");
    check_number(params.dry_multiplier, 0.0f, 1e6f, "dry_multiplier");
    check_number(params.dry_base, 1.0f, 1e6f, "dry_base");
    check_count(params.dry_allowed_length, 1, 1 << 24, "dry_allowed_length");
    check_count(params.dry_penalty_last_n, 0, 1 << 24, "dry_penalty_last_n");
    const int32_t n_vocab = model.n_vocab();
    check_count(params.min_keep, 0, n_vocab, "min_keep");
    require(params.n_logit_bias >= 0 && (params.n_logit_bias == 0 || (params.logit_bias_ids != nullptr && params.logit_bias_values != nullptr)), PYLLM_INVALID_ARGUMENT,
            format("n_logit_bias %d is negative, or an array is NULL", params.n_logit_bias));
    sampler_settings settings;
    settings.params = params;
    for (int32_t i = 0; i < params.n_logit_bias; ++i) {
        const llama_token id    = params.logit_bias_ids[i];
        const float       value = params.logit_bias_values[i];
        check_count(id, 0, n_vocab - 1, "logit_bias of token");
        require(value == -INFINITY || (value >= -1e6f && value <= 1e6f), PYLLM_INVALID_ARGUMENT, format("logit_bias %g of token %d is neither -inf nor in [-1e+06, 1e+06]", (double) value, id));
        settings.bias.push_back({ id, value });
    }
    if (params.ignore_eos) {
        for (llama_token id = 0; id < n_vocab; ++id) {
            if (llama_vocab_is_eog(model.vocab(), id)) {
                settings.bias.push_back({ id, -INFINITY });
            }
        }
    }
    if (params.grammar != nullptr) {
        settings.grammar_text = params.grammar;
    }
    settings.params.logit_bias_ids    = nullptr;
    settings.params.logit_bias_values = nullptr;
    settings.params.grammar           = nullptr;
    return settings;
}

void check_token(const pyllm_sampler & sampler, int32_t token, const char * what, int32_t place) {
    require(token >= 0 && token < sampler.n_vocab, PYLLM_INVALID_ARGUMENT, format("%s %d at place %d is not in [0, %d)", what, token, place, sampler.n_vocab));
}

// What the drafter drew one token from.
struct proposal {
    const int32_t * ids;
    const float *   probs;
    double          sum = 0.0;

    double probability(llama_token token) const {
        for (int32_t i = 0; i < PYLLM_DRAFT_CANDIDATES; ++i) {
            if (ids[i] == token) {
                return (double) probs[i] / sum;
            }
        }
        return 0.0;
    }
};

proposal check_proposal(const pyllm_sampler & sampler, const int32_t * q_ids, const float * q_probs, int32_t place, llama_token drafted) {
    proposal q{ q_ids + (ptrdiff_t) place * PYLLM_DRAFT_CANDIDATES, q_probs + (ptrdiff_t) place * PYLLM_DRAFT_CANDIDATES };
    for (int32_t i = 0; i < PYLLM_DRAFT_CANDIDATES; ++i) {
        require(q.probs[i] >= 0.0f && q.probs[i] <= 1.001f, PYLLM_INVALID_ARGUMENT, format("q: probability %g of place %d is not in [0, 1]", (double) q.probs[i], place));
        if (q.ids[i] == -1) {
            require(q.probs[i] == 0.0f, PYLLM_INVALID_ARGUMENT, format("q: an unused entry of place %d has probability %g", place, (double) q.probs[i]));
            continue;
        }
        check_token(sampler, q.ids[i], "q: token", place);
        require(std::find(q.ids, q.ids + i, q.ids[i]) == q.ids + i, PYLLM_INVALID_ARGUMENT, format("q: token %d is listed twice at place %d", q.ids[i], place));
        q.sum += (double) q.probs[i];
    }
    require(std::fabs(q.sum - 1.0) < 1e-3, PYLLM_INVALID_ARGUMENT, format("q: the probabilities of place %d add up to %g instead of 1", place, q.sum), "hand over what the drafter returned");
    require(q.probability(drafted) > 0.0, PYLLM_INVALID_ARGUMENT, format("q: the drafted token %d of place %d has no probability", drafted, place), "hand over what the drafter returned");
    return q;
}

// Lossless rejection sampling (Leviathan et al. 2023, Chen et al. 2023): x from q is kept with probability min(1, p/q), else the token
// comes from what p has over q; either way it is distributed as p.
llama_token test_draft(pyllm_sampler & sampler, const weighted_tokens & p, const proposal & q, llama_token drafted) {
    if (sampler.tests.next() * q.probability(drafted) < p.probability(drafted)) {
        return drafted;
    }
    weighted_tokens rest;
    for (const auto & token : p.tokens) {
        const double over = (double) token.p / p.sum - q.probability(token.id);
        if (over > 0.0) {
            rest.tokens.push_back({ token.id, token.logit, (float) over });
            rest.sum += (double) (float) over;
        }
    }
    // Only rounding can leave nothing: p and q are then equal.
    return (rest.sum > 0.0 ? rest : p).at(sampler.tests.next());
}

class byte_writer {
public:
    std::vector<uint8_t> bytes;

    template <typename T> void add(const T & value) {
        const auto * data = reinterpret_cast<const uint8_t *>(&value);
        bytes.insert(bytes.end(), data, data + sizeof(T));
    }
    template <typename T> void add_list(const T & values) {
        add((uint64_t) values.size());
        for (const auto & value : values) {
            add(value);
        }
    }
};

class byte_reader {
public:
    byte_reader(const uint8_t * data, size_t size) : data(data), left(size) {}

    template <typename T> T take() {
        need(sizeof(T));
        T value;
        std::memcpy(&value, data, sizeof(T));
        data += sizeof(T);
        left -= sizeof(T);
        return value;
    }
    template <typename T> std::vector<T> take_list() {
        const auto n = take<uint64_t>();
        require(n <= left / sizeof(T), PYLLM_STATE, format("the sampler state is truncated: %llu entries do not fit %zu bytes", (unsigned long long) n, left));
        std::vector<T> values;
        for (uint64_t i = 0; i < n; ++i) {
            values.push_back(take<T>());
        }
        return values;
    }
    size_t remaining() const { return left; }

private:
    const uint8_t * data;
    size_t          left;

    void need(size_t n) const { require(n <= left, PYLLM_STATE, format("the sampler state is truncated: %zu more bytes are needed, %zu are left", n, left)); }
};

std::vector<uint8_t> save(const pyllm_sampler & sampler) {
    require(sampler.draws.drawn() <= max_drawn && sampler.tests.drawn() <= max_drawn, PYLLM_LIMIT,
            format("the sampler has drawn %llu numbers, a state holds at most %llu", (unsigned long long) std::max(sampler.draws.drawn(), sampler.tests.drawn()), (unsigned long long) max_drawn),
            "reset the sampler for a new generation");
    byte_writer writer;
    writer.add(state_magic);
    writer.add(state_version);
    writer.add(sampler.settings.identity(sampler.n_vocab));
    writer.add(sampler.constraint != nullptr ? sampler.constraint->identity() : (uint64_t) 0);
    writer.add(sampler.draws.seed());
    writer.add(sampler.draws.drawn());
    writer.add(sampler.tests.drawn());
    writer.add_list(sampler.next.history());
    writer.add_list(sampler.constraint != nullptr ? sampler.constraint->position() : std::vector<uint32_t>());
    return writer.bytes;
}

// All or nothing.
void load(pyllm_sampler & sampler, const uint8_t * data, size_t size) {
    byte_reader reader(data, size);
    require(reader.take<uint32_t>() == state_magic, PYLLM_STATE, "these bytes are not the state of a sampler");
    const auto version = reader.take<uint32_t>();
    require(version == state_version, PYLLM_STATE, format("the sampler state has version %u, this library reads version %u", version, state_version), "use the version of pyllm that wrote it");
    require(reader.take<uint64_t>() == sampler.settings.identity(sampler.n_vocab), PYLLM_STATE, "the sampler state was taken with other sampling settings or another vocabulary",
            "make the sampler with the settings of the one whose state this is; the seed may differ");
    require(reader.take<uint64_t>() == (sampler.constraint != nullptr ? sampler.constraint->identity() : 0), PYLLM_STATE, "the sampler state was taken with another grammar",
            "make the sampler with the grammar of the one whose state this is");
    const auto seed    = reader.take<uint32_t>();
    const auto drawn   = reader.take<uint64_t>();
    const auto tested  = reader.take<uint64_t>();
    const auto history = reader.take_list<int32_t>();
    const auto place   = reader.take_list<uint32_t>();
    require(reader.remaining() == 0, PYLLM_STATE, format("the sampler state is followed by %zu bytes that are not its own", reader.remaining()));
    require(drawn <= max_drawn && tested <= max_drawn, PYLLM_STATE, "the sampler state is damaged: too many numbers drawn");
    require(history.size() <= sampler.settings.n_history(), PYLLM_STATE, format("the sampler state is damaged: %zu tokens of history, at most %zu are kept", history.size(), sampler.settings.n_history()));
    for (const int32_t token : history) {
        require(token >= 0 && token < sampler.n_vocab, PYLLM_STATE, format("the sampler state is damaged: token %d is not in [0, %d)", token, sampler.n_vocab));
    }
    if (sampler.constraint != nullptr) {
        sampler.constraint->set_position(place);
    } else {
        require(place.empty(), PYLLM_STATE, "the sampler state is damaged: a place in a grammar that there is not");
    }
    sampler.next.set_history(history);
    sampler.restart(seed, drawn, tested);
}

} // namespace

extern "C" {

pyllm_sampler_params pyllm_sampler_params_default(void) {
    pyllm_sampler_params params = {};
    params.seed               = LLAMA_DEFAULT_SEED;
    params.temperature        = 0.8f;
    params.top_k              = 40;
    params.top_p              = 0.95f;
    params.min_p              = 0.05f;
    params.typical_p          = 1.0f;
    params.top_n_sigma        = -1.0f;
    params.repeat_penalty     = 1.0f;
    params.penalty_last_n     = 64;
    params.dry_base           = 1.75f;
    params.dry_allowed_length = 2;
    params.dry_penalty_last_n = 64;
    return params;
}

pyllm_status pyllm_sampler_create(pyllm_model * model, const pyllm_sampler_params * params, pyllm_sampler ** out) {
    return guard([&] {
        not_null(model, "model");
        not_null(params, "params");
        *not_null(out, "out") = nullptr;
        *out = new pyllm_sampler(model->model, check_settings(*model, *params));
    });
}

void pyllm_sampler_free(pyllm_sampler * sampler) { delete sampler; }

pyllm_status pyllm_sampler_clone(pyllm_sampler * sampler, pyllm_sampler ** out) {
    return guard([&] {
        not_null(sampler, "sampler");
        *not_null(out, "out") = nullptr;
        const auto bytes = save(*sampler);
        auto copy = std::make_unique<pyllm_sampler>(sampler->model, sampler->settings);
        load(*copy, bytes.data(), bytes.size());
        *out = copy.release();
    });
}

pyllm_status pyllm_sampler_reset(pyllm_sampler * sampler) {
    return guard([&] {
        not_null(sampler, "sampler");
        sampler->next.reset();
        if (sampler->constraint != nullptr) {
            sampler->constraint->reset();
        }
        sampler->restart(any_seed(sampler->settings.params.seed), 0, 0);
    });
}

pyllm_status pyllm_sampler_accept(pyllm_sampler * sampler, const int32_t * tokens, int32_t n_tokens, bool generated) {
    return guard([&] {
        not_null(sampler, "sampler");
        require(n_tokens >= 0 && (n_tokens == 0 || tokens != nullptr), PYLLM_INVALID_ARGUMENT, "tokens is NULL or n_tokens negative");
        for (int32_t i = 0; i < n_tokens; ++i) {
            check_token(*sampler, tokens[i], "token", i);
        }
        if (generated && sampler->constraint != nullptr) {
            const auto before = sampler->constraint->position();
            try {
                for (int32_t i = 0; i < n_tokens; ++i) {
                    sampler->constraint->accept(tokens[i]);
                }
            } catch (const failure &) {
                sampler->constraint->set_position(before);
                throw;
            }
        }
        for (int32_t i = 0; i < n_tokens; ++i) {
            sampler->next.accept(tokens[i]);
        }
    });
}

pyllm_status pyllm_sampler_verify(pyllm_sampler * sampler, pyllm_context * context, int32_t index, const int32_t * draft, int32_t n_draft,
                                  const int32_t * q_ids, const float * q_probs, int32_t * tokens, int32_t * n_tokens) {
    return guard([&] {
        not_null(sampler, "sampler");
        const context_state & state = *not_null(context, "context")->state;
        not_null(tokens, "tokens");
        not_null(n_tokens, "n_tokens");
        require(state.model == sampler->model, PYLLM_INVALID_ARGUMENT, "the sampler was made for another model");
        require(n_draft >= 0 && (n_draft == 0 || draft != nullptr), PYLLM_INVALID_ARGUMENT, format("n_draft %d is negative, or draft is NULL", n_draft));
        require((q_ids == nullptr) == (q_probs == nullptr), PYLLM_INVALID_ARGUMENT, "q needs both its tokens and their probabilities");
        for (int32_t i = 0; i <= n_draft; ++i) {
            state.check_output(index + i);
        }
        const bool exact = q_ids == nullptr || sampler->settings.greedy();
        std::vector<proposal> proposals;
        for (int32_t i = 0; !exact && i < n_draft; ++i) {
            proposals.push_back(check_proposal(*sampler, q_ids, q_probs, i, draft[i]));
        }
        *n_tokens = 0;
        for (int32_t i = 0; i <= n_draft; ++i) {
            llama_token token = -1;
            try {
                const weighted_tokens & p = sampler->next.of(not_null(llama_get_logits_ith(state.ctx, index + i), "logits"), sampler->constraint.get(), index + i);
                token = exact || i == n_draft ? p.at(sampler->settings.greedy() ? 0.0 : sampler->draws.next()) : test_draft(*sampler, p, proposals[(size_t) i], draft[i]);
                sampler->accept(token, true);
            } catch (const failure &) {
                // What was found before stands; the row of the failure is not used, and decoding it again will show it.
                if (i == 0) {
                    throw;
                }
                break;
            }
            tokens[(*n_tokens)++] = token;
            // As upstream does: nothing after an end of text, unless it is the last of the draft, as in a replay.
            if (i < n_draft && (token != draft[i] || (i + 1 < n_draft && llama_vocab_is_eog(sampler->vocab, token)))) {
                break;
            }
        }
    });
}

pyllm_status pyllm_sampler_get_state(pyllm_sampler * sampler, uint8_t * data, size_t capacity, size_t * size) {
    return guard([&] {
        not_null(sampler, "sampler");
        const auto bytes = save(*sampler);
        *not_null(size, "size") = bytes.size();
        if (data != nullptr) {
            require(bytes.size() <= capacity, PYLLM_LIMIT, format("the sampler state has %zu bytes, the buffer %zu", bytes.size(), capacity), "ask for the size with data NULL");
            std::memcpy(data, bytes.data(), bytes.size());
        }
    });
}

pyllm_status pyllm_sampler_set_state(pyllm_sampler * sampler, const uint8_t * data, size_t size) {
    return guard([&] {
        not_null(sampler, "sampler");
        require(data != nullptr || size == 0, PYLLM_INVALID_ARGUMENT, "data is NULL");
        load(*sampler, data, size);
    });
}

} // extern "C"
