#pragma once

// Sizes that speculation needs of a context.
//
// A block drafter (DFlash, DSpark) puts the noise blocks of all drafting slots into one decode. Its attention is not
// causal, so a decode cannot be cut into micro-batches: the blocks of all slots together have to fit
// into n_ubatch. Example: 8 slots with 15 draft tokens each are 8 * (15 + 1) = 128 tokens.

#include "llama.h"

#include <cstdint>

namespace pyllm {

// tokens of one slot's noise block: the last accepted token and one mask per draft token
int32_t block_tokens(const llama_model * model_dft, int32_t n_max);

// Raise n_batch and n_ubatch until the blocks of n_seq slots fit into one decode, and set the number
// of outputs to what these blocks can ask for. Models that do not draft in blocks are left alone.
void size_block_context(llama_context_params & cparams, const llama_model * model_dft, int32_t n_max, int32_t n_seq);

// Raise n_batch and n_ubatch until a rollback of n_rs_seq tokens fits: in a recurrent memory the last
// 1 + n_rs_seq tokens of a sequence stay in one micro-batch, and it has to be larger than that.
void size_rollback_context(llama_context_params & cparams);

} // namespace pyllm
