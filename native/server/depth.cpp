#include "server/depth.h"

#include "draft/depth.h"

#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <sstream>

namespace pyllm::server {

namespace {

// The deepest that is decided about, as in the engine.
constexpr int32_t MAX_DEPTH = 64;

constexpr const char * REASONS[] = { "idle", "learning", "limited", "off", "drafting", "probing", "baseline" };
static_assert(std::size(REASONS) == (size_t) draft::DepthReason::baseline + 1, "reasons of depth.h have a word each");

// What became of a slot's draft in the step that runs.
struct outcome {
    int32_t depth    = 0;
    int32_t drafted  = 0;
    int32_t accepted = 0;
};

struct {
    bool                                 enabled = false;
    std::mutex                           mutex; // /metrics is answered on another thread, also in the middle of a step
    std::unique_ptr<draft::DepthControl> control;
    draft::Cut                           cut = draft::Cut::rows;
    std::vector<depth_wish>              wishes; // of the slots that generate
    std::vector<outcome>                 outcomes; // by slot
    int64_t                              begun         = 0; // µs, 0: no step runs
    double                               seconds_draft = 0.0;
    bool                                 teaches       = true;
    bool                                 may_rest      = false;
    bool                                 rests         = false; // in the decode that comes
} one;

bool wishes_for(int32_t slot) {
    return std::any_of(one.wishes.begin(), one.wishes.end(), [&](const depth_wish & wish) { return wish.slot == slot; });
}

} // namespace

void take_depth_flag(std::vector<char *> & arguments) {
    const auto flag = std::remove_if(arguments.begin(), arguments.end(), [](const char * text) { return std::strcmp(text, "--depth-control") == 0; });
    one.enabled     = flag != arguments.end();
    arguments.erase(flag, arguments.end());
}

bool controls_depth() { return one.enabled; }

int64_t now_us() { return ggml_time_us(); }

double seconds_since(int64_t us) { return 1e-6 * (double) (ggml_time_us() - us); }

// As Core._cut in pyllm/engine/core.py.
draft::Cut cut_of(const llama_context * ctx, int32_t n_slots, bool unified) {
    const llama_model * model     = llama_get_model(ctx);
    const bool          recurrent = llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
    if (n_slots == 1) {
        return draft::Cut::rows;
    }
    if (!unified || (recurrent && llama_n_rs_seq(ctx) > 0)) {
        return draft::Cut::neighbours;
    }
    return recurrent ? draft::Cut::equal : draft::Cut::rows;
}

void choose_depths(const depth_terms & terms, const std::vector<depth_wish> & wishes) {
    const std::lock_guard<std::mutex> lock(one.mutex);
    const int32_t n_slots = terms.n_slots;
    const int32_t n_max   = std::min(terms.n_max, MAX_DEPTH);
    if (n_max < 1) {
        one.control.reset();
        return;
    }
    if (!one.control || one.control->n_seq() != n_slots || one.control->n_max() != n_max || one.cut != terms.cut || one.may_rest != terms.may_rest) {
        // Rows are taken over by the drafter as they come: no draft has to catch up.
        one.control  = std::make_unique<draft::DepthControl>(n_slots, n_max, terms.cut, terms.may_rest ? draft::LISTEN_STEPS : 0);
        one.cut      = terms.cut;
        one.may_rest = terms.may_rest;
        one.wishes.clear();
    }
    for (int32_t slot = 0; slot < n_slots; ++slot) {
        const bool now = std::any_of(wishes.begin(), wishes.end(), [&](const depth_wish & wish) { return wish.slot == slot; });
        if (one.control->generating(slot) && !now) {
            one.control->end(slot);
        } else if (now && !one.control->generating(slot)) {
            one.control->begin(slot, 0);
        }
    }
    one.wishes = wishes;
    one.outcomes.assign((size_t) n_slots, outcome{});
    one.begun         = ggml_time_us();
    one.seconds_draft = 0.0;
    one.teaches       = true;
    if (wishes.empty()) {
        return;
    }
    std::vector<int32_t> seqs, limits, depths(wishes.size());
    for (const depth_wish & wish : wishes) {
        seqs.push_back(wish.slot);
        limits.push_back(std::clamp(wish.limit, 0, n_max));
    }
    one.control->choose(seqs.data(), limits.data(), (int32_t) seqs.size(), depths.data());
    for (size_t i = 0; i < seqs.size(); ++i) {
        one.outcomes[(size_t) seqs[i]].depth = depths[i];
    }
}

int32_t chosen_depth(int32_t slot, int32_t limit) {
    return one.control && wishes_for(slot) ? std::min(limit, one.outcomes[(size_t) slot].depth) : limit;
}

bool depth_is_off(int32_t slot) {
    return one.control && wishes_for(slot) && one.outcomes[(size_t) slot].depth == 0;
}

void depth_drafted(double seconds) {
    one.seconds_draft += seconds;
}

void depth_verified(int32_t slot, int32_t n_drafted, int32_t n_accepted) {
    if (one.control && wishes_for(slot)) {
        one.outcomes[(size_t) slot].drafted  = n_drafted;
        one.outcomes[(size_t) slot].accepted = n_accepted;
    }
}

void depth_replayed() {
    one.teaches = false;
}

void depth_step_done(int32_t n_rows) {
    const std::lock_guard<std::mutex> lock(one.mutex);
    if (!one.control || one.begun == 0) {
        return;
    }
    const double seconds = seconds_since(one.begun);
    one.begun            = 0;
    std::vector<int32_t> seqs, drafted, accepted;
    int32_t              generated = 0;
    for (const depth_wish & wish : one.wishes) {
        const outcome & had = one.outcomes[(size_t) wish.slot];
        seqs.push_back(wish.slot);
        drafted.push_back(had.drafted);
        accepted.push_back(had.accepted);
        generated += 1 + had.drafted;
        one.teaches = one.teaches && had.drafted <= one.control->n_max() && had.accepted <= had.drafted;
    }
    // Fewer rows than the slots should have had: a decode has failed, or a draft was dropped where the cache was full.
    if (!one.teaches || seqs.empty() || n_rows < generated) {
        return;
    }
    draft::DepthStep step;
    step.n              = (int32_t) seqs.size();
    step.seqs           = seqs.data();
    step.drafted        = drafted.data();
    step.accepted       = accepted.data();
    step.seconds_draft  = one.seconds_draft;
    step.seconds_decode = std::max(0.0, seconds - one.seconds_draft);
    step.n_rows         = generated;
    step.n_prompt_rows  = n_rows - generated;
    one.control->record(step);
}

// A draft that waits to be verified again is told from what its drafter has read.
void rest_drafters(llama_context * ctx, bool can) {
    const bool now = can && one.control && one.teaches && one.control->rests();
    if (one.rests != now) {
        rest_taps(ctx, now);
        one.rests = now;
    }
}

bool drafters_rest() { return one.rests; }

std::string depth_prometheus() {
    const std::lock_guard<std::mutex> lock(one.mutex);
    if (!one.control) {
        return "";
    }
    std::ostringstream out;
    const auto         family = [&](const char * name, const char * type, const char * help) {
        out << "# HELP llamacpp:" << name << ' ' << help << "\n# TYPE llamacpp:" << name << ' ' << type << '\n';
    };
    const draft::DepthTotals totals = one.control->totals();
    family("depth_control_steps_total", "counter", "Steps that depth control has learnt from.");
    out << "llamacpp:depth_control_steps_total " << totals.n_steps << '\n';
    family("depth_control_probes_total", "counter", "Steps that tried a depth that is not in use.");
    out << "llamacpp:depth_control_probes_total " << totals.n_probes << '\n';
    family("depth_control_seconds_total", "counter", "Time of these steps.");
    out << "llamacpp:depth_control_seconds_total " << totals.seconds << '\n';
    family("depth_control_probing_seconds_total", "counter", "Time lost to probes.");
    out << "llamacpp:depth_control_probing_seconds_total " << totals.seconds_probing << '\n';
    std::vector<draft::DepthSlot> slots;
    for (int32_t slot = 0; slot < one.control->n_seq(); ++slot) {
        slots.push_back(one.control->slot(slot));
    }
    const auto each = [&](const char * name, const char * help, auto && value) {
        family(name, "gauge", help);
        for (size_t slot = 0; slot < slots.size(); ++slot) {
            out << "llamacpp:" << name << "{slot=\"" << slot << "\"} " << value(slots[slot]) << '\n';
        }
    };
    each("slot_depth_chosen", "Tokens that depth control lets a slot draft.", [](const draft::DepthSlot & slot) { return slot.depth; });
    each("slot_rate_expected", "Tokens per second that are expected of it, 0: not known.", [](const draft::DepthSlot & slot) { return slot.rate; });
    each("slot_rate_without", "Tokens per second if no slot drafted, 0: not known.", [](const draft::DepthSlot & slot) { return slot.rate_off; });
    family("slot_depth_reason", "gauge", "1 for why a slot drafts as much as it does.");
    for (size_t slot = 0; slot < slots.size(); ++slot) {
        for (size_t reason = 0; reason < std::size(REASONS); ++reason) {
            out << "llamacpp:slot_depth_reason{slot=\"" << slot << "\",reason=\"" << REASONS[reason] << "\"} " << (slots[slot].reason == (draft::DepthReason) reason) << '\n';
        }
    }
    return out.str();
}

} // namespace pyllm::server
