// Does a draft model belong to a target?
#pragma once

#include "common.h"

#include <string>
#include <vector>

namespace pyllm {

struct target_mismatch {
    bool        unsupported; // the model is no drafter of that type at all, for whatever target
    std::string message;     // empty: they belong together
    std::string hint;
};

// Compares type, vocabulary, row width, tapped layers and architecture. model_dft NULL: the heads are inside the target's file.
target_mismatch find_target_mismatch(const llama_model * model_dft, const llama_model * model_tgt, const std::vector<common_speculative_type> & types);

// The same with the answer in the log, for the server. False: it must not start.
bool made_for_target(const llama_model * model_dft, const llama_model * model_tgt, const std::vector<common_speculative_type> & types);

} // namespace pyllm
