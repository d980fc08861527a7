#pragma once

// What a configuration needs from the logical batch, checked once at start.

#include "common.h"

#include <cstdint>

namespace pyllm {

// Every slot adds at least one token to a step. True if n_batch holds one token per slot;
// if not, the reason and the ways out are logged.
bool batch_holds_slots(const common_params & params);

// In one step every slot adds its last token and its draft to one batch, and a draft is never cut in
// two. True if n_batch tokens hold that for n_parallel slots with drafts of n_draft tokens;
// if not, the reason and the ways out are logged.
bool batch_holds_drafts(const common_params & params, int32_t n_batch, int32_t n_draft);

} // namespace pyllm
