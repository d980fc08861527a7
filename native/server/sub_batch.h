#pragma once

// Cutting the batch of one step into sub-batches when the KV cache has no room for all of it.
//
// Every slot that drafts puts one block into the batch: its last token, then its draft. The block is
// verified as a whole, so it has to be decoded as a whole: a sub-batch ends on block boundaries.
// When a sub-batch does not fit into the KV cache, what it asks for shrinks in this order:
//   1. drafts are dropped, the last one first: a slot without its draft takes one plain step
//   2. the sub-batch is halved (only plain tokens and prompts are left in it)
//   3. not even one token fits: one request ends with an error, the others go on
//
// The templates work on the server's batch and slots: indices are positions in batch.tokens, ranges
// are half-open, and every slot with a block waiting for its decode has its indices in spec_i_batch.

#include "common.h"
#include "log.h"

#include <algorithm>
#include <cstdint>
#include <string>

namespace pyllm {

struct batch_range {
    int32_t beg = 0;
    int32_t end = 0; // beg == end: nothing

    int32_t size() const { return end - beg; }
};

// the block of a slot that is still to be decoded
template <class Slot>
batch_range draft_block(const Slot & slot) {
    if (slot.spec_i_batch.empty()) {
        return {};
    }
    return { slot.spec_i_batch.front(), slot.spec_i_batch.back() + 1 };
}

// take a range out of the batch; what slots remember about later tokens moves with them
template <class Batch, class Slots>
void erase_tokens(Batch & batch, Slots & slots, batch_range range) {
    batch.tokens.erase(batch.tokens.begin() + range.beg, batch.tokens.begin() + range.end);
    if (batch.has_embd) {
        batch.embd.erase(batch.embd.begin() + (size_t) range.beg * batch.n_embd, batch.embd.begin() + (size_t) range.end * batch.n_embd);
    }
    for (auto & slot : slots) {
        if (slot.i_batch >= range.end) {
            slot.i_batch -= range.size();
        }
        for (auto & i : slot.spec_i_batch) {
            if (i >= range.end) {
                i -= range.size();
            }
        }
    }
}

// leave only the last token of a slot's block: the slot samples once, as without speculation.
// A replayed draft (tokens accepted before a checkpoint was restored) is sampled again, to the same
// tokens: the sampler was restored with the checkpoint.
template <class Batch, class Slots, class Slot>
void drop_draft(Batch & batch, Slots & slots, Slot & slot) {
    const batch_range block   = draft_block(slot);
    const int32_t     n_draft = block.size() - 1;

    LOG_WRN("slot %d: no room in the KV cache, dropping its draft of %d tokens\n", slot.id, n_draft);

    slot.prompt.tokens.keep_first(slot.prompt.n_tokens() - n_draft);
    if (!slot.spec_is_replay) {
        slot.stats.n_draft_tokens -= n_draft; // never verified, so no part of the acceptance rate
    }
    slot.spec_is_replay = false;
    slot.spec_draft.clear();
    slot.spec_i_batch.clear();
    slot.i_batch = block.beg;

    erase_tokens(batch, slots, { block.beg + 1, block.end });
}

// drop the last draft among the first n tokens after off; false if there is none
template <class Batch, class Slots>
bool drop_last_draft(Batch & batch, Slots & slots, int32_t off, int32_t n) {
    auto last = slots.end();
    for (auto it = slots.begin(); it != slots.end(); ++it) {
        const batch_range block = draft_block(*it);
        if (block.size() > 0 && block.beg >= off && block.beg < off + n && (last == slots.end() || block.beg > draft_block(*last).beg)) {
            last = it;
        }
    }
    if (last == slots.end()) {
        return false;
    }
    drop_draft(batch, slots, *last);
    return true;
}

// tokens of the sub-batch that starts at off: at most n_max, and no block straddles its end
template <class Batch, class Slots>
int32_t sub_batch_size(Batch & batch, Slots & slots, int32_t off, int32_t n_max) {
    for (;;) {
        const int32_t end = std::min(off + n_max, batch.size());

        const auto slot = std::find_if(slots.begin(), slots.end(), [end](const auto & slot) {
            const batch_range block = draft_block(slot);
            return block.beg < end && end < block.end;
        });
        if (slot == slots.end()) {
            return end - off;
        }
        if (draft_block(*slot).beg > off) {
            return draft_block(*slot).beg - off;
        }
        drop_draft(batch, slots, *slot); // longer than a whole sub-batch
    }
}

// take what is left of a slot's tokens out of the batch; they are contiguous
template <class Batch, class Slots, class Slot>
void erase_slot(Batch & batch, Slots & slots, int32_t off, Slot & slot) {
    const auto is_slot = [&slot](const auto & token) { return token.id_slot == slot.id; };

    const auto beg = std::find_if    (batch.tokens.begin() + off, batch.tokens.end(), is_slot);
    const auto end = std::find_if_not(beg, batch.tokens.end(), is_slot);

    slot.i_batch = -1;
    slot.spec_i_batch.clear();
    erase_tokens(batch, slots, { (int32_t) (beg - batch.tokens.begin()), (int32_t) (end - batch.tokens.begin()) });
}

// End one request for lack of room. In a cache that all slots share it is the one that came last,
// otherwise the one whose token does not fit. fail(slot, why) answers it and frees its cells.
template <class Batch, class Slots, class Fail>
void end_one_request(Batch & batch, Slots & slots, int32_t off, bool shared, int32_t n_ctx, const Fail & fail) {
    auto * victim = &slots[batch.tokens[off].id_slot];
    if (!victim->is_processing()) {
        erase_slot(batch, slots, off, *victim); // ended while an earlier sub-batch was decoded
        return;
    }

    int32_t n_running = 0;
    int32_t n_held    = 0;
    for (auto & slot : slots) {
        if (slot.is_processing() && slot.prompt.n_tokens() > 0) {
            n_running += 1;
            n_held    += slot.prompt.n_tokens();
            if (shared && slot.task->id > victim->task->id) {
                victim = &slot;
            }
        }
    }

    erase_slot(batch, slots, off, *victim);

    const int32_t n_victim = victim->prompt.n_tokens();
    fail(*victim, shared
        ? string_format("context size has been exceeded: %d running requests hold %d tokens in a KV cache of %d, this one %d; "
                        "raise -c, lower -np, or send it again when others have finished", n_running, n_held, n_ctx, n_victim)
        : string_format("context size has been exceeded: %d tokens do not fit into the slot's KV cache of %d; raise -c",
                        n_victim, victim->n_ctx));
}

} // namespace pyllm
