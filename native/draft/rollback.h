#pragma once

// Rolling back rejected draft tokens on models with recurrent state: snapshots in place of checkpoints.
//
// A context keeps n_rs_seq snapshots of its recurrent state per sequence, one for each token that can be taken back. A draft that is longer than
// that costs a copy of the whole state to the host before it is verified, and a second decode of the accepted tokens after it.

#include "common.h"
#include "llama.h"

#include <cstdint>

namespace pyllm {

// Tokens that an n-gram drafter may draft at once on a model with snapshots. Its drafts cost nothing and can be 48 long; every snapshot costs
// one recurrent state in memory and in each verification, and few drafts are accepted beyond this.
constexpr int32_t RECURRENT_NGRAM_DEPTH = 8;

// Snapshots to reserve per sequence: as many tokens as the drafters of `spec` draft at once. Models without snapshots ignore the number.
uint32_t rollback_depth(const common_params_speculative & spec);

// What of n_draft tokens can be rolled back from a snapshot of ctx: all of them for models without snapshots, which have another way.
int32_t within_rollback(const llama_context * ctx, int32_t n_draft);

} // namespace pyllm
