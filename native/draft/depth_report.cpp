// What depth control says about itself: per slot, with the numbers that decided, and in total.
#include "draft/depth.h"

#include <cstdio>

namespace pyllm::draft {

namespace {

template <typename... Args> std::string text(const char * format, Args... args) {
    char line[192];
    std::snprintf(line, sizeof(line), format, args...);
    return line;
}

} // namespace

DepthSlot DepthControl::slot(int32_t seq) const {
    const Slot &    slot = slots_[(size_t) seq];
    const Weighed & w    = slot.weighed;
    DepthSlot out;
    out.depth    = slot.depth;
    out.reason   = slot.reason;
    out.rate     = w.chosen > 0.0 ? slot.tokens / w.chosen : 0.0;
    out.rate_off = w.base > 0.0 ? 1.0 / w.base : 0.0;
    switch (slot.reason) {
        case DepthReason::idle: out.text = "idle"; break;
        case DepthReason::learning: out.text = w.n == 0 ? "learning: no step was measured yet" : "learning: no draft was measured yet"; break;
        case DepthReason::limited: out.text = "off: the request allows no draft"; break;
        case DepthReason::drafting: out.text = text("depth %d: %.1f tok/s against %.1f at 0", slot.depth, out.rate, out.rate_off); break;
        case DepthReason::probing: out.text = text("probing depth %d", slot.depth); break;
        case DepthReason::baseline: out.text = text("probing depth 0: %.1f tok/s when last measured", out.rate_off); break;
        case DepthReason::off:
            if (w.on) {
                out.text = text("off: its rows would cost more than they bring, acceptance %.2f", (double) slot.first);
            } else if (w.rows == 0) {
                out.text = text("off: acceptance %.2f", (double) slot.first);
            } else {
                out.text = text("off: %d slots, T(%d)=%.3g ms and a draft of %.3g ms against T(%d)=%.3g ms, acceptance %.2f", w.n, w.rows, w.decode * 1e3,
                                w.draft * 1e3, w.n, w.base * 1e3, (double) slot.first);
            }
            break;
    }
    return out;
}

void DepthControl::acceptance(int32_t seq, float * chances) const {
    std::vector<float> rows((size_t) n_max_);
    acceptance_.chances(seq, n_max_, step_, Outlook::even, chances, rows.data());
}

DepthTotals DepthControl::totals() const {
    DepthTotals out;
    out.n_steps         = step_;
    out.n_probes        = n_probes_;
    out.seconds         = total_;
    out.seconds_probing = lost_;
    out.seconds_catchup = draft_.per_row();
    return out;
}

} // namespace pyllm::draft
