// A sequence that generates on and on without a draft.
#pragma once

#include <cstdint>

struct common_speculative;
struct llama_context;

namespace pyllm {

// With `rest` decodes of this context copy no rows of its taps to the host.
void rest_taps(llama_context * ctx, bool rest);

} // namespace pyllm

namespace pyllm::draft {

// After twice as many plain steps it rests. From then on only its newest rows are kept, this many to twice as many: to inject them all would cost as much as
// drafting does, and a draft that is tried from time to time says with these, nearly, what one with all of them would.
constexpr int32_t RESTING_ROWS = 32;

// Steps until a drafter that was wrong lately is tried on the text of a slot that has come; more where it was wrong on several.
constexpr uint64_t OTHER_TEXT = 64;

// Steps that a drafter reads after a rest before it is tried again. As LISTEN in pyllm/engine/drafting.py.
constexpr int32_t LISTEN_STEPS = 32;

// Whether a server's drafters can do without the rows of some decodes: ours see the gap in the positions of what comes next, and begin anew behind it.
// The others' memory would have to be told, but for n-grams, which read none.
bool may_rest(const common_speculative * spec);

} // namespace pyllm::draft
