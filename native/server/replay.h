#pragma once

// A target that cannot take single tokens back is restored from a checkpoint when a draft is accepted in part, and what was accepted is decoded
// and verified again. Two logits that are nearly equal can come out the other way round in a batch of another size: the second verification then
// rejects what the first one chose, and so on for ever. One replay per position is enough: when it is rejected too, the slot takes one plain step
// there, which always yields a token.

#include <cstdint>

namespace pyllm::server {

class replay_guard {
public:
    // A verified draft is about to be rolled back to a checkpoint of n_tokens tokens; was_replay: the draft was one that had been accepted there
    // before. True: decode what was accepted again. False: take a plain step.
    bool may_replay(bool was_replay, int64_t n_tokens) {
        if (was_replay) {
            n_tokens_plain = n_tokens;
        }
        return !was_replay;
    }

    // whether a slot with n_tokens tokens must not draft now
    bool plain_step_due(int64_t n_tokens) const { return n_tokens == n_tokens_plain; }

private:
    int64_t n_tokens_plain = -1;
};

} // namespace pyllm::server
