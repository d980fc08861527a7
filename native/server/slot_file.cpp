#include "server/slot_file.h"

#include "core/error.h"
#include "server/last_error.h"
#include "state/file.h"
#include "state/fingerprint.h"

#include "build-info.h"

#include <cstring>
#include <list>
#include <stdexcept>
#include <utility>
#include <vector>

namespace pyllm::server {

namespace {

using bytes = std::vector<uint8_t>;

constexpr llama_state_seq_flags WHOLE   = LLAMA_STATE_SEQ_FLAGS_NONE;
constexpr llama_state_seq_flags PARTIAL = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

// numbers of one context checkpoint, in section `checkpoints`
struct place {
    int64_t n_tokens;
    int32_t pos_min;
    int32_t pos_max;
};

std::string architecture(const llama_context * ctx) {
    char text[64] = {};
    llama_model_meta_val_str(llama_get_model(ctx), "general.architecture", text, sizeof(text));
    return text;
}

// what has to be equal for a state to fit
state::facts binding(const slot_place & slot) {
    const auto & spec = slot.params.speculative;

    std::string drafters = common_speculative_type_name_str(spec.types);
    if (spec.has_dft()) {
        drafters += " " + state::fingerprint(spec.draft.mparams.path);
    }
    if (slot.ctx_dft != nullptr) {
        drafters += std::string(" ") + ggml_type_name(spec.draft.cache_type_k) + "/" + ggml_type_name(spec.draft.cache_type_v);
    }
    return {
        { "writer",       "pyllm-server" },
        { "model",        state::fingerprint(slot.params.model.path) },
        { "architecture", architecture(slot.ctx_tgt) },
        { "kv_types",     std::string(ggml_type_name(slot.params.cache_type_k)) + "/" + ggml_type_name(slot.params.cache_type_v) },
        { "drafters",     drafters },
        { "upstream",     llama_commit() },
    };
}

bytes sequence_state(llama_context * ctx, llama_seq_id id) {
    bytes data(llama_state_seq_get_size_ext(ctx, id, WHOLE));
    if (llama_state_seq_get_data_ext(ctx, data.data(), data.size(), id, WHOLE) != data.size()) {
        throw std::runtime_error("the state of the slot cannot be read" + last_error());
    }
    return data;
}

bool load(llama_context * ctx, const bytes & data, llama_seq_id id, llama_state_seq_flags flags) {
    return data.empty() || (ctx != nullptr && llama_state_seq_set_data_ext(ctx, data.data(), data.size(), id, flags) == data.size());
}

bytes optional_section(const state::reader & file, const std::string & name) {
    return file.has(name) ? file.section(name) : bytes();
}

template <class T> std::vector<T> numbers(const state::reader & file, const std::string & name) {
    const bytes data = file.section(name);
    if (data.size() % sizeof(T) != 0) {
        throw std::runtime_error("section `" + name + "` of `" + file.path() + "` has " + std::to_string(data.size()) + " bytes, no multiple of " + std::to_string(sizeof(T)));
    }
    std::vector<T> values(data.size() / sizeof(T));
    if (!values.empty()) {
        std::memcpy(values.data(), data.data(), data.size());
    }
    return values;
}

std::list<common_prompt_checkpoint> read_checkpoints(const state::reader & file) {
    std::list<common_prompt_checkpoint> checkpoints;

    const auto places = numbers<place>(file, "checkpoints");
    for (size_t i = 0; i < places.size(); ++i) {
        const std::string name = "checkpoint." + std::to_string(i);

        auto & next = checkpoints.emplace_back();
        next.update_pos(places[i].n_tokens, places[i].pos_min, places[i].pos_max);
        next.data_tgt  = file.section(name + ".target");
        next.data_dft  = optional_section(file, name + ".draft");
        next.data_spec = optional_section(file, name + ".driver");
    }
    return checkpoints;
}

// the message of a refusal, with its way out
template <class Body> auto with_hint(const Body & body) {
    try {
        return body();
    } catch (const failure & refusal) {
        throw std::runtime_error(refusal.message + (refusal.hint.empty() ? "" : ": " + refusal.hint));
    }
}

} // namespace

size_t save_slot(const slot_place & slot, const server_prompt & prompt, const std::string & path) {
    return with_hint([&] {
        forget_errors();

        const std::vector<char> tokens = prompt.tokens.serialize();
        const bytes             target = sequence_state(slot.ctx_tgt, slot.id);

        bytes draft;
        if (slot.ctx_dft != nullptr) {
            draft = sequence_state(slot.ctx_dft, slot.id);
        }
        bytes driver;
        common_speculative_get_state(slot.spec, slot.id, driver);

        std::vector<place> places;
        for (const auto & checkpoint : prompt.checkpoints) {
            places.push_back({ checkpoint.n_tokens, checkpoint.pos_min, checkpoint.pos_max });
        }

        std::vector<state::section> sections;
        const auto add = [&](const std::string & name, const void * data, size_t size) {
            if (size > 0) {
                sections.push_back({ name, static_cast<const uint8_t *>(data), size });
            }
        };
        add("tokens", tokens.data(), tokens.size());
        add("target", target.data(), target.size());
        add("draft.0", draft.data(), draft.size());
        add("driver", driver.data(), driver.size());
        sections.push_back({ "checkpoints", reinterpret_cast<const uint8_t *>(places.data()), places.size() * sizeof(place) });

        size_t i = 0;
        for (const auto & checkpoint : prompt.checkpoints) {
            const std::string name = "checkpoint." + std::to_string(i++);
            add(name + ".target", checkpoint.data_tgt.data(), checkpoint.data_tgt.size());
            add(name + ".draft", checkpoint.data_dft.data(), checkpoint.data_dft.size());
            add(name + ".driver", checkpoint.data_spec.data(), checkpoint.data_spec.size());
        }

        state::facts facts = binding(slot);
        facts.emplace_back("n_tokens", std::to_string(prompt.tokens.size()));
        facts.emplace_back("checkpoints", std::to_string(places.size()));
        state::write(path, facts, sections);
        return (size_t) state::reader(path).size();
    });
}

size_t restore_slot(const slot_place & slot, server_prompt & prompt, const std::string & path, const std::function<void()> & clear) {
    return with_hint([&] {
        const state::reader file(path);
        state::check(path, binding(slot), file.header());

        server_tokens tokens = server_tokens::deserialize(numbers<llama_token>(file, "tokens"), slot.has_media);
        if (tokens.size() > (size_t) slot.n_ctx) {
            throw std::runtime_error(string_format("`%s` holds %zu tokens, the slot has room for %d: start the server with a larger -c or a smaller -np", path.c_str(),
                                                   tokens.size(), slot.n_ctx));
        }
        if (!tokens.validate(slot.ctx_tgt)) {
            throw std::runtime_error("`" + path + "` holds tokens that the model does not have");
        }
        const bytes target      = file.section("target");
        const bytes draft       = optional_section(file, "draft.0");
        const bytes driver      = optional_section(file, "driver");
        auto        checkpoints = read_checkpoints(file);

        clear();
        forget_errors();

        // The server ends the process when a checkpoint cannot be loaded later, so each has to be loaded once now.
        checkpoints.remove_if([&](const auto & checkpoint) {
            return !load(slot.ctx_tgt, checkpoint.data_tgt, slot.id, PARTIAL) || !load(slot.ctx_dft, checkpoint.data_dft, slot.id, PARTIAL);
        });
        clear();

        if (!load(slot.ctx_tgt, target, slot.id, WHOLE)) {
            throw std::runtime_error("the slot's cache cannot take `" + path + "`" + last_error() + ": start the server with the -c, -np and -fa that it was saved with");
        }
        if (!load(slot.ctx_dft, draft, slot.id, WHOLE)) {
            throw std::runtime_error("the drafter's cache cannot take `" + path + "`" + last_error() + ": start the server with the -c and -np that it was saved with");
        }
        common_speculative_set_state(slot.spec, slot.id, driver);

        prompt.tokens      = std::move(tokens);
        prompt.checkpoints = std::move(checkpoints);
        return (size_t) file.size();
    });
}

} // namespace pyllm::server
