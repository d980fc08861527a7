// Depth control for a server's slots (`--depth-control`): how much each drafts is chosen step by step, by what steps took and brought.
//
// The templates work on the server's slots, whose own rules they name. All but the text for /metrics is called by the thread that decodes. A process has
// one server, and this has one control.
#pragma once

#include "draft/micro_batches.h"
#include "draft/resting.h"
#include "server/draft_state.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

struct common_speculative;
struct llama_context;

namespace pyllm::server {

// What a generating slot may draft now, by its request and its room.
struct depth_wish {
    int32_t slot;
    int32_t limit;
};

// Takes `--depth-control` out of the arguments of the program.
void take_depth_flag(std::vector<char *> & arguments);
bool controls_depth();

draft::Cut cut_of(const llama_context * ctx, int32_t n_slots, bool unified);

// What the slots and their drafters are.
struct depth_terms {
    int32_t    n_slots;
    int32_t    n_max;
    draft::Cut cut;
    bool       may_rest; // draft::may_rest
};

void    choose_depths(const depth_terms & terms, const std::vector<depth_wish> & wishes);
int32_t chosen_depth(int32_t slot, int32_t limit);
// Whether the slot drafts nothing because that costs more than it brings.
bool depth_is_off(int32_t slot);
void depth_drafted(double seconds);
void depth_verified(int32_t slot, int32_t n_drafted, int32_t n_accepted);
// A draft is verified a second time: what the step takes and brings teaches nothing.
void depth_replayed();
void depth_step_done(int32_t n_rows);

// The drafters read their rows, or need not where nothing is drafted for a while.
void rest_drafters(llama_context * ctx, bool can);
bool drafters_rest();

std::string depth_prometheus();

int64_t now_us();
double  seconds_since(int64_t us);

template <class Slots, class State>
void choose_depths(const Slots & slots, State generating, const common_speculative * spec, int32_t n_max, llama_context * ctx, bool unified) {
    if (spec == nullptr || !controls_depth()) {
        return;
    }
    std::vector<depth_wish> wishes;
    for (const auto & slot : slots) {
        if (slot.state == generating) {
            wishes.push_back({ slot.id, slot.get_n_draft_max() });
        }
    }
    rest_drafters(ctx, false); // an image of a prompt is decoded outside of the step's batch
    choose_depths({ (int32_t) slots.size(), n_max, cut_of(ctx, (int32_t) slots.size(), unified), draft::may_rest(spec) }, wishes);
}

// Before a decode. Rows of prompts are always read.
template <class Slots, class State> void rest_drafters(const Slots & slots, State idle, State generating, llama_context * ctx) {
    rest_drafters(ctx, std::all_of(slots.begin(), slots.end(), [&](const auto & slot) { return slot.state == idle || slot.state == generating; }));
}

// A draft that waits to be verified again is not ours to cut.
template <class Slot> int32_t depth_within(const Slot & slot, int32_t limit) {
    if (!slot.spec_draft.empty()) {
        depth_replayed();
        return limit;
    }
    return chosen_depth(slot.id, limit);
}

template <class Draft> void timed_draft(Draft && draft) {
    const int64_t begin = now_us();
    draft();
    depth_drafted(seconds_since(begin));
}

} // namespace pyllm::server
