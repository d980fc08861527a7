#pragma once

#include "pyllm.h"

#include "llama.h"

#include <memory>
#include <string>

// The handle is a share of the loaded model: contexts hold their own, so closing the handle first is safe.
struct pyllm_model {
    std::shared_ptr<llama_model> model;
    std::string                  path;
    bool                         has_mtp    = false; // its prediction heads were loaded
    bool                         vocab_only = false; // hyperparameters and weights were not

    const llama_vocab * vocab() const { return llama_model_get_vocab(model.get()); }
    int32_t             n_vocab() const { return llama_vocab_n_tokens(vocab()); }
};

namespace pyllm {
// Text of a metadata key; empty when the model has none.
std::string model_meta(const llama_model * model, const std::string & key);
std::string model_architecture(const llama_model * model);
// Block size of a DFlash drafter; 0 for other models.
int32_t model_block_size(const llama_model * model);
}
