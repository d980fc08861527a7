#include "draft/depth.h"

#include <algorithm>

namespace pyllm::draft {

// After a rest the drafter reads rows for a while before it is asked: at once if drafting pays by what is known, else in time for the next probe.
bool DepthControl::listens() {
    if (resting_ && (on_ || acceptance_timer_.due <= step_ + n_listen_)) {
        resting_ = false;
        listens_ = step_ + n_listen_;
    }
    return resting_ || step_ < listens_;
}

void DepthControl::rest() { resting_ = n_listen_ > 0 && (resting_ || (!on_ && probe_ == Probe::none && acceptance_timer_.due > step_ + 2 * n_listen_)); }

// A slot that comes has the drafter tried anew, soon where it was not wrong lately: company_changed().
bool DepthControl::skips_prompts() const {
    return resting_ && acceptance_.poor() && std::min(acceptance_timer_.due, step_ + other_text_) > step_ + n_listen_;
}

bool DepthControl::chose_rest() const {
    return resting_ && n_ > 0 && std::all_of(seqs_.begin(), seqs_.end(), [&](int32_t seq) { return generating(seq); });
}

bool DepthControl::rested(double seconds) {
    const int32_t n = (int32_t) seqs_.size();
    none_.assign(seqs_.size(), 0);
    DepthStep step;
    step.n              = n;
    step.seqs           = seqs_.data();
    step.drafted        = none_.data();
    step.accepted       = none_.data();
    step.seconds_decode = seconds;
    step.n_rows         = n;
    record(step);
    const std::vector<int32_t> seqs = seqs_, wishes = limits_;
    choose(seqs.data(), wishes.data(), n, none_.data());
    return resting_;
}

} // namespace pyllm::draft
