#include "draft/target_match.h"

#include "log.h"
#include "speculative.h"

#include "../src/llama-ext.h" // llama_model_target_layer_ids

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace pyllm {

namespace {

// Tokens by which vocabularies may differ in length.
constexpr int32_t MAX_PADDING = 128;

const char * const other_drafter = "it was made for another model; give the drafter that was made for this target";

std::string architecture(const llama_model * model) {
    char text[64] = {};
    llama_model_meta_val_str(model, "general.architecture", text, sizeof(text));
    return text;
}

bool contains(const std::vector<common_speculative_type> & types, common_speculative_type type) {
    return std::find(types.begin(), types.end(), type) != types.end();
}

target_mismatch incompatible(const std::string & message) { return { false, message, other_drafter }; }

// Upstream's rule for draft models: equal text from token 5 on (the first ones are often renamed).
target_mismatch compare_texts(const llama_vocab * dft, const llama_vocab * tgt, int32_t n) {
    for (int32_t id = 5; id < n; ++id) {
        if (std::strcmp(llama_vocab_get_text(dft, id), llama_vocab_get_text(tgt, id)) != 0) {
            return incompatible(string_format("token %d is `%s` for the drafter and `%s` for the target", id, llama_vocab_get_text(dft, id), llama_vocab_get_text(tgt, id)));
        }
    }
    return {};
}

target_mismatch compare_vocabulary(const llama_model * model_dft, const llama_model * model_tgt) {
    const llama_vocab * dft = llama_model_get_vocab(model_dft);
    const llama_vocab * tgt = llama_model_get_vocab(model_tgt);
    const int32_t n_dft = llama_vocab_n_tokens(dft);
    const int32_t n_tgt = llama_vocab_n_tokens(tgt);
    if (n_dft != n_tgt) {
        return incompatible(string_format("the drafter's vocabulary has %d tokens, the target's %d", n_dft, n_tgt));
    }
    return compare_texts(dft, tgt, n_tgt);
}

// A plain draft model: its vocabulary may differ from the target's in padding at the end, by as much as upstream allows.
target_mismatch compare_simple(const llama_model * model_dft, const llama_model * model_tgt) {
    if (model_dft == nullptr) {
        return { true, "`draft-simple` needs a draft model", "give the GGUF of a small model with the target's vocabulary" };
    }
    const std::string arch = architecture(model_dft);
    if (arch == "dflash" || arch == "eagle3" || arch == "gemma4-assistant") {
        return { true, string_format("architecture `%s` cannot draft by itself", arch.c_str()), arch == "gemma4-assistant" ? "its type is draft-mtp" : "its type is draft-" + arch };
    }
    const llama_vocab * dft = llama_model_get_vocab(model_dft);
    const llama_vocab * tgt = llama_model_get_vocab(model_tgt);
    if (llama_vocab_type(dft) != llama_vocab_type(tgt)) {
        return incompatible(string_format("the drafter's vocabulary is of type %d, the target's of type %d", (int) llama_vocab_type(dft), (int) llama_vocab_type(tgt)));
    }
    const int32_t n_dft = llama_vocab_n_tokens(dft);
    const int32_t n_tgt = llama_vocab_n_tokens(tgt);
    if (std::abs(n_dft - n_tgt) > MAX_PADDING) {
        return incompatible(string_format("the drafter's vocabulary has %d tokens, the target's %d: more than %d apart", n_dft, n_tgt, MAX_PADDING));
    }
    return compare_texts(dft, tgt, std::min(n_dft, n_tgt));
}

target_mismatch compare_width(int32_t n_dft, int32_t n_tgt) {
    return n_dft == n_tgt ? target_mismatch{} : incompatible(string_format("the drafter reads rows of width %d, the target's are %d wide", n_dft, n_tgt));
}

target_mismatch compare_mtp(const llama_model * model_dft, const llama_model * model_tgt) {
    const std::string arch_tgt = architecture(model_tgt);
    if (model_dft == nullptr) {
        if (llama_model_n_layer_nextn(model_tgt) > 0) {
            return {};
        }
        return { true, string_format("architecture `%s` in this file has no prediction heads (nextn_predict_layers is 0), so `draft-mtp` has nothing to draft with", arch_tgt.c_str()),
                 "give a draft model with prediction heads, or choose ngram-map-k" };
    }
    const std::string arch_dft = architecture(model_dft);
    if (llama_model_n_layer_nextn(model_dft) <= 0) {
        return { true, string_format("the draft model (architecture `%s`) has no prediction heads, so it is no `draft-mtp` drafter", arch_dft.c_str()),
                 arch_dft == "dflash" ? "its type is draft-dflash" : "give a model with prediction heads" };
    }
    if (arch_dft == "gemma4-assistant" && arch_tgt != "gemma4") {
        return incompatible(string_format("a `gemma4-assistant` drafter reads the KV cache of a `gemma4` target, this one is `%s`", arch_tgt.c_str()));
    }
    return compare_width(llama_model_n_embd_out(model_dft), llama_model_n_embd_out(model_tgt));
}

target_mismatch compare_dflash(const llama_model * model_dft, const llama_model * model_tgt) {
    if (model_dft == nullptr) {
        return { true, "`draft-dflash` needs a draft model", "give the GGUF of a DFlash drafter" };
    }
    const std::string arch = architecture(model_dft);
    if (arch != "dflash") {
        return { true, string_format("architecture `%s` is no `draft-dflash` drafter", arch.c_str()),
                 llama_model_n_layer_nextn(model_dft) > 0 ? "its type is draft-mtp" : "give the GGUF of a DFlash drafter" };
    }
    const uint32_t n_ids = llama_model_target_layer_ids_n(model_dft);
    if (n_ids == 0 || llama_vocab_mask(llama_model_get_vocab(model_dft)) < 0) {
        return { true, n_ids == 0 ? "the drafter's file names no target layers (dflash.target_layers)" : "the drafter's file names no mask token (tokenizer.ggml.mask_token_id)",
                 "convert the drafter again" };
    }
    return compare_width(llama_model_n_embd(model_dft), llama_model_n_embd(model_tgt));
}

// The input of layer n_layer is the output of the last one.
target_mismatch compare_layers(const llama_model * model_dft, const llama_model * model_tgt) {
    const int32_t * ids     = llama_model_target_layer_ids(model_dft);
    const int32_t   n_layer = llama_model_n_layer(model_tgt);
    for (uint32_t i = 0; i < llama_model_target_layer_ids_n(model_dft); ++i) {
        if (ids[i] < 0 || ids[i] > n_layer) {
            return incompatible(string_format("the drafter taps the input of layer %d, the target has %d layers", ids[i], n_layer));
        }
    }
    return {};
}

} // namespace

target_mismatch find_target_mismatch(const llama_model * model_dft, const llama_model * model_tgt, const std::vector<common_speculative_type> & types) {
    std::string with_context; // types that draft with a context of their own
    int32_t     n_contexts = 0;
    for (const auto type : { COMMON_SPECULATIVE_TYPE_DRAFT_MTP, COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH, COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK, COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3,
                             COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE }) {
        if (contains(types, type)) {
            with_context += (n_contexts++ > 0 ? " and `" : "`") + common_speculative_type_to_str(type) + "`";
        }
    }
    if (n_contexts > 1) {
        return { true, with_context + " together need " + std::to_string(n_contexts) + " draft contexts, and there is one", "choose one of them; ngram types can join any" };
    }
    const bool mtp    = contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_MTP);
    const bool dflash = contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH) || contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK);
    target_mismatch found;
    if (mtp) {
        found = compare_mtp(model_dft, model_tgt);
    } else if (dflash) {
        found = compare_dflash(model_dft, model_tgt);
    } else if (contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE)) {
        found = compare_simple(model_dft, model_tgt);
    }
    if (found.message.empty() && model_dft != nullptr) {
        found = compare_layers(model_dft, model_tgt);
    }
    if (found.message.empty() && model_dft != nullptr && (mtp || dflash)) {
        found = compare_vocabulary(model_dft, model_tgt);
    }
    return found;
}

bool made_for_target(const llama_model * model_dft, const llama_model * model_tgt, const std::vector<common_speculative_type> & types) {
    const target_mismatch found = find_target_mismatch(model_dft, model_tgt, types);
    if (!found.message.empty()) {
        LOG_ERR("error: %s\n\nhint: %s\n", found.message.c_str(), found.hint.c_str());
    }
    return found.message.empty();
}

} // namespace pyllm
