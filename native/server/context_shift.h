#pragma once

// Whether the positions of a sequence can be moved (context shift, cache reuse). Target and draft
// context move together: the target has to allow it, and the draft context has to survive it.

#include "common.h"
#include "llama.h"

namespace pyllm {

// ctx_dft may be null
bool can_shift(const llama_context * ctx_tgt, const llama_context * ctx_dft);

// switch off what needs shifting, and say so, when the draft context is the one that does not allow it
void no_shift_without_draft(common_params & params, const llama_context * ctx_dft);

} // namespace pyllm
