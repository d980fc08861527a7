#pragma once

// What one decode that fails costs: the requests that had tokens in it, and no others.
//
// The templates work on the server's batch and slots, as in server/sub_batch.h.

#include "server/last_error.h"
#include "server/sub_batch.h"

#include "llama.h"
#include "log.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pyllm::server {

// The slots that a failed decode of the n tokens after off ends: those with tokens in it, and those in state `waiting` for one of them to compute their
// common prompt. Their tokens are taken out of the batch, from off on; what is left can be decoded as if they had not been there.
template <class Batch, class Slots, class State>
auto take_out_failed(Batch & batch, Slots & slots, int32_t off, int32_t n, State waiting) {
    std::vector<bool> hit(slots.size(), false);
    for (int32_t i = off; i < off + n; ++i) {
        hit[batch.tokens[i].id_slot] = true;
    }
    for (size_t i = 0; i < slots.size(); ++i) {
        for (size_t k = 0; k < slots.size(); ++k) {
            if (hit[i] && slots[i].is_processing() && slots[k].state == waiting && slots[k].task->id_parent == slots[i].task->id) {
                hit[k] = true;
            }
        }
    }

    std::vector<typename Slots::value_type *> failed;
    for (size_t i = 0; i < slots.size(); ++i) {
        if (hit[i]) {
            erase_slot(batch, slots, off, slots[i]);
            failed.push_back(&slots[i]);
        }
    }
    return failed;
}

// A drafter could not take the n tokens after off that the target has decoded: the slots they belong to go on without drafts until their request
// ends. What their draft memory holds is dropped, so that the next request does not find a gap in it.
template <class Batch, class Slots>
void stop_drafting(const Batch & batch, Slots & slots, int32_t off, int32_t n, llama_context * ctx_dft) {
    for (int32_t i = off; i < off + n; ++i) {
        auto & slot = slots[batch.tokens[i].id_slot];
        if (slot.drafter_failed) {
            continue;
        }
        LOG_WRN("slot %d: its drafter failed, the request goes on without drafts\n", slot.id);
        slot.drafter_failed = true;
        if (ctx_dft != nullptr) {
            llama_memory_seq_rm(llama_get_memory(ctx_dft), slot.id, -1, -1);
        }
    }
}

} // namespace pyllm::server
