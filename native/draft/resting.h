// A sequence that generates on and on without a draft.
#pragma once

#include <cstdint>

struct llama_context;

namespace pyllm {

// With `rest` decodes of this context copy no rows of its taps to the host.
void rest_taps(llama_context * ctx, bool rest);

} // namespace pyllm

namespace pyllm::draft {

// After twice as many plain steps it rests. From then on only its newest rows are kept, this many to twice as many: to inject them all would cost as much as
// drafting does, and a draft that is tried from time to time says with these, nearly, what one with all of them would.
constexpr int32_t RESTING_ROWS = 32;

// Steps until a drafter that was wrong lately is tried on the text of a slot that has come.
constexpr uint64_t OTHER_TEXT = 64;

} // namespace pyllm::draft
