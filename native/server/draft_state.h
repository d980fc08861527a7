#pragma once

// What /metrics says of a slot's next draft. The template works on the server's slots, whose own rules it names.

#include "draft/metrics.h"

#include <algorithm>
#include <cstdint>

namespace pyllm::server {

// n_draft_max is the slot's answer to how much it may draft now, n_max the most that any drafter drafts at once; off: depth control lets it draft nothing.
template <class Slot>
void tell_limit(const Slot & slot, int32_t n_draft_max, int32_t n_max, bool off = false) {
    using draft::slot_state;
    slot_state state = slot_state::room;
    if (n_draft_max > 0) {
        state = slot_state::drafting;
    } else if (slot.drafter_failed) {
        state = slot_state::failed;
    } else if (slot.task->params.draft_limits.n_max == 0) {
        state = slot_state::limited;
    } else if (slot.replays.plain_step_due(slot.prompt.n_tokens())) {
        state = slot_state::replay;
    } else if (off) {
        state = slot_state::off;
    }
    draft::tell_slot(slot.id, state, std::max(0, std::min(n_draft_max, n_max)));
}

} // namespace pyllm::server
