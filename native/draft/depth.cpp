#include "draft/depth.h"

#include <algorithm>
#include <cmath>

namespace pyllm::draft {

namespace {

constexpr double kBorrow   = 2.5;   // steps that the first probes may cost before their share of the time is earned
constexpr double kBorrowOn = 8.0;   // the same where drafting brings at least kWellOn of the rate without: enough is won to look for more
constexpr double kWellOn   = 1.2;
constexpr double kShare    = 0.010; // of the time that probes may cost; 1.5 % is promised, the rest is for misjudged ones
constexpr double kSaved    = 8.0;   // steps: what is not spent on probes does not pile up
constexpr double kTurnOn   = 1.015; // of the rate without a draft, besides what the noise of the measured steps may feign
constexpr double kStayOn   = 1.0;
constexpr double kNoise    = 1.5;   // mean deviations
constexpr double kRare     = 0.0025;// of the time: probes of acceptance that cost no more than this need not become rarer
constexpr double kRareCost = 0.006; // the same for probes of costs
constexpr double kPayOff   = 128.0;  // steps within which taking over the rows of a pause has to pay
constexpr double kWorth    = 1.03;  // of the present rate: what a depth has to promise to be measured
constexpr double kFound    = 1.01;  // of the rate before: what a probe of costs has to bring
constexpr float  kNothing  = 0.03f; // tokens: a position that brings less is not drafted, even where rows are free
constexpr float  kLearnt   = 8.0f;  // trials after which a probe has nothing to add

// 1, 2, 3, 4, 6, 8, 12, 16, …: depths between them are reached on the way to the next.
int32_t next_cap(int32_t cap) { return cap < 4 ? cap + 1 : (cap & (cap - 1)) == 0 ? cap / 2 * 3 : cap / 3 * 4; }

} // namespace

DepthControl::DepthControl(int32_t n_seq, int32_t n_max, Cut cut, int32_t n_listen)
    : n_max_(n_max), cut_(cut), n_listen_((uint64_t) n_listen), decode_(n_seq * (1 + n_max)), draft_(n_max, n_seq), acceptance_(n_seq, n_max), slots_((size_t) n_seq) {}

void DepthControl::company_changed() {
    if (acceptance_.poor()) {
        acceptance_timer_.due = std::min(acceptance_timer_.due, step_ + other_text_);
    } else {
        acceptance_timer_.reset(step_);
    }
    cost_timer_.reset(step_);
    baseline_timer_.reset(step_);
    decode_.doubt();
    draft_.doubt();
}

void DepthControl::begin(int32_t seq, int32_t n_catchup) {
    Slot & slot = slots_[(size_t) seq];
    slot            = Slot{};
    slot.generating = true;
    slot.pending    = n_catchup;
    acceptance_.begin(seq);
    company_changed();
}

void DepthControl::end(int32_t seq) {
    slots_[(size_t) seq] = Slot{};
    company_changed();
}

void DepthControl::measure(int32_t depth, int32_t slots, int32_t rows, double seconds_draft, double seconds_decode) {
    decode_.add(rows, seconds_decode, step_);
    if (depth > 0) {
        draft_.add(depth, slots, seconds_draft, 0, step_);
    }
}

double DepthControl::available() const {
    const bool   well   = on_ && plan_.tokens * base_seconds_ > kWellOn * (double) plan_.depths.size() * plan_.seconds;
    const double borrow = (well ? kBorrowOn : kBorrow) * base_seconds_;
    return std::min(std::max(borrow, kShare * elapsed_) - spent_, kSaved * base_seconds_);
}

// Before the first draft is measured it is taken to cost half a step.
double DepthControl::draft_seconds(int32_t depth, int32_t slots) const {
    return depth <= 0 ? 0.0 : draft_.known() ? draft_.seconds(depth, slots) : 0.5 * base_seconds_;
}

void DepthControl::chances(const int32_t * seqs, const int32_t * limits, int32_t n, Outlook outlook) {
    tokens_.resize((size_t) n * n_max_);
    rows_.resize((size_t) n * n_max_);
    for (int32_t i = 0; i < n; ++i) {
        acceptance_.chances(seqs[i], limits[i], step_, outlook, tokens_.data() + (size_t) i * n_max_, rows_.data() + (size_t) i * n_max_);
    }
}

// The positions of all slots in the order of what they bring. Along this order the rows grow one by one, and for every greatest depth the best
// place to stop is looked up: a fixed cost of drafting makes the rate fall before it rises, so the first fall is no reason to stop.
void DepthControl::best(const int32_t * limits, int32_t n, bool hopeful, Plan & plan) {
    const int32_t deepest = std::max(1, 2 * draft_.reach());
    const int32_t room    = std::max(decode_.reach(), n) * 2; // beyond twice of what was measured nothing is known
    candidates_.clear();
    int32_t longest = 0;
    for (int32_t i = 0; i < n; ++i) {
        for (int32_t k = 1; k <= std::min(limits[i], deepest); ++k) {
            const size_t at = (size_t) i * n_max_ + (size_t) k - 1;
            if (tokens_[at] < kNothing) {
                break;
            }
            candidates_.push_back({ tokens_[at], rows_[at], i, k });
            longest = std::max(longest, k);
        }
    }
    std::sort(candidates_.begin(), candidates_.end(), [](const candidate & a, const candidate & b) {
        return a.gain != b.gain ? a.gain > b.gain : a.depth != b.depth ? a.depth < b.depth : a.slot < b.slot;
    });
    const int32_t n_rows = std::min((int32_t) candidates_.size(), room - n);
    decode_table_.resize((size_t) n_rows + 2);
    decode_.seconds(n, n_rows + 2, decode_table_.data());
    for (int32_t r = 0; hopeful && r <= n_rows + 1; ++r) {
        decode_table_[(size_t) r] = decode_.floor(n + r, step_);
    }
    draft_table_.resize((size_t) (longest + 1) * (n + 1));
    for (int32_t d = 1; d <= longest; ++d) {
        for (int32_t s = 1; s <= n; ++s) {
            draft_table_[(size_t) d * (n + 1) + s] = hopeful ? draft_.floor(d, s, step_) : draft_.seconds(d, s);
        }
    }

    double  best_rate = 0.0;
    int32_t best_cap = 0, best_stop = 0;
    for (int32_t cap = 1, before = 0; before < longest; before = cap, cap = next_cap(cap)) {
        double  tokens = n, rows = 0;
        int32_t drafting = 0, reached = 0;
        for (int32_t c = 0; c < (int32_t) candidates_.size(); ++c) {
            const candidate & now = candidates_[(size_t) c];
            if (now.depth > cap) {
                continue;
            }
            tokens += now.gain;
            rows += now.rows;
            drafting += now.depth == 1;
            reached = std::max(reached, now.depth);
            if (rows > n_rows) {
                break;
            }
            const int32_t whole   = (int32_t) rows;
            const double  part    = rows - whole;
            const double  seconds = decode_table_[(size_t) whole] * (1.0 - part) + decode_table_[(size_t) whole + 1] * part +
                                   draft_table_[(size_t) reached * (n + 1) + drafting];
            if (tokens > best_rate * seconds) {
                best_rate = tokens / seconds;
                best_cap  = cap;
                best_stop = c + 1;
            }
        }
    }
    plan.depths.assign((size_t) n, 0);
    for (int32_t c = 0; c < best_stop; ++c) {
        const candidate & now = candidates_[(size_t) c];
        if (now.depth <= best_cap) {
            plan.depths[(size_t) now.slot] = now.depth;
        }
    }
}

// The same depth for all slots, as deep as pays, where that beats the depths of each slot by itself: those may cut the decode into parts.
void DepthControl::even(const int32_t * seqs, const int32_t * limits, int32_t n, bool hopeful, Plan & plan) {
    const int32_t longest = std::min(*std::max_element(limits, limits + n), std::max(1, 2 * draft_.reach()));
    if (hopeful) {
        const int32_t deepest = *std::max_element(plan.depths.begin(), plan.depths.end());
        std::transform(limits, limits + n, plan.depths.begin(), [&](int32_t limit) { return std::min(limit, deepest); });
        return;
    }
    weigh(plan, n, seqs, false);
    Plan level;
    level.depths.resize((size_t) n);
    for (int32_t depth = 1, before = 0; before < longest; before = depth, depth = next_cap(depth)) {
        std::transform(limits, limits + n, level.depths.begin(), [&](int32_t limit) { return std::min({ limit, depth, longest }); });
        weigh(level, n, seqs, false);
        if (level.rate() > plan.rate()) {
            plan = level;
        }
    }
}

// T of a step, over the parts that it is cut into; `rows` are those that come where the drafter may leave positions empty.
double DepthControl::decode_seconds(const int32_t * seqs, const int32_t * depths, int32_t n, double rows) {
    if (cut_ == Cut::rows) {
        return decode_.seconds(rows);
    }
    sorted_.assign(seqs, seqs + n);
    lengths_.resize((size_t) n);
    std::sort(sorted_.begin(), sorted_.end());
    for (int32_t i = 0; i < n; ++i) {
        lengths_[(size_t) (std::lower_bound(sorted_.begin(), sorted_.end(), seqs[i]) - sorted_.begin())] = 1 + depths[i];
    }
    micro_batches(sorted_.data(), lengths_.data(), n, cut_, parts_);
    if (parts_.size() == 1) {
        return decode_.seconds(rows);
    }
    double seconds = 0.0;
    for (const int32_t part : parts_) {
        seconds += decode_.seconds(part);
    }
    return seconds;
}

// Tokens and seconds of the depths that a plan holds, by the present estimates.
void DepthControl::weigh(Plan & plan, int32_t n, const int32_t * seqs, bool with_catchup) {
    double rows = n, catchup = 0;
    plan.tokens  = n;
    plan.rows    = n;
    plan.deepest = plan.drafting = 0;
    for (int32_t i = 0; i < n; ++i) {
        const int32_t depth = plan.depths[(size_t) i];
        for (int32_t k = 0; k < depth; ++k) {
            plan.tokens += tokens_[(size_t) i * n_max_ + k];
            rows += rows_[(size_t) i * n_max_ + k];
        }
        plan.rows += depth;
        plan.drafting += depth > 0;
        plan.deepest = std::max(plan.deepest, depth);
        catchup += depth > 0 ? std::max(0, slots_[(size_t) seqs[i]].pending - depth - 1) : 0;
    }
    plan.decode  = decode_seconds(seqs, plan.depths.data(), n, rows);
    plan.seconds = plan.decode + draft_seconds(plan.deepest, plan.drafting) + (with_catchup ? catchup * draft_.per_row() : 0.0);
}

// Slots that do not draft get a draft of one token, those that waited longest first, as many as the probes' account allows.
bool DepthControl::probe_acceptance(const int32_t * seqs, const int32_t * limits, int32_t n, bool burst) {
    std::vector<int32_t> order;
    for (int32_t i = 0; i < n; ++i) {
        if (limits[i] > 0 && plan_.depths[(size_t) i] == 0 && (!burst || draft_.waiting() || slots_[(size_t) seqs[i]].burst)) {
            order.push_back(i);
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return acceptance_.last(seqs[a]) < acceptance_.last(seqs[b]); });
    Plan   tried = plan_;
    bool   any   = false;
    for (const int32_t i : order) {
        tried.depths[(size_t) i] = 1;
        weigh(tried, n, seqs, true);
        const double loss = tried.seconds - plan_.tokens / reference_rate_;
        if (loss > available()) {
            tried.depths[(size_t) i] = 0;
            lacking_ = any ? 0.0 : loss - available();
            break;
        }
        any = true;
    }
    // A short draft beside none may cost another part of the decode, one for everybody does not.
    if (cut_ != Cut::rows && order.size() > 1) {
        Plan all = plan_;
        for (const int32_t i : order) {
            all.depths[(size_t) i] = 1;
        }
        weigh(all, n, seqs, true);
        if (all.seconds - plan_.tokens / reference_rate_ <= available() && (!any || all.seconds <= tried.seconds)) {
            tried = all;
            any   = true;
        }
    }
    if (any) {
        probed_ = tried;
        weigh(probed_, n, seqs, true);
    }
    return any;
}

// The depths that would be best if every cost that was not measured lately were as low as it can be.
bool DepthControl::probe_cost(const int32_t * seqs, const int32_t * limits, int32_t n) {
    Plan tried;
    chances(seqs, limits, n, Outlook::hopeful);
    best(limits, n, true, tried);
    if (cut_ != Cut::rows) {
        even(seqs, limits, n, true, tried);
    }
    double tokens = n, rows = n;
    for (int32_t i = 0; i < n; ++i) {
        for (int32_t k = 0; k < tried.depths[(size_t) i]; ++k) {
            tokens += tokens_[(size_t) i * n_max_ + k];
            rows += rows_[(size_t) i * n_max_ + k];
        }
    }
    weigh(tried, n, seqs, false);
    const double lowest = decode_.floor((int32_t) rows, step_) + draft_.floor(tried.deepest, tried.drafting, step_);
    const bool   worth  = tried.drafting > 0 && tried.depths != plan_.depths && tokens > kWorth * reference_rate_ * lowest;
    chances(seqs, limits, n, Outlook::careful);
    if (!worth) {
        return false;
    }
    weigh(tried, n, seqs, true);
    // Half of the tokens may fail to come.
    if (tried.seconds - 0.5 * (tried.tokens + n) / reference_rate_ > available()) {
        return false;
    }
    probed_ = tried;
    return true;
}

void DepthControl::choose(const int32_t * seqs, const int32_t * wishes, int32_t n, int32_t * depths) {
    seqs_.assign(seqs, seqs + n);
    limits_.resize((size_t) n);
    std::transform(wishes, wishes + n, limits_.begin(), [&](int32_t wish) { return std::min(wish, n_max_); });
    const int32_t * const limits = limits_.data();
    n_     = n;
    probe_ = Probe::none;
    plan_.depths.assign((size_t) n, 0);
    for (int32_t i = 0; i < n; ++i) {
        Slot & slot = slots_[(size_t) seqs[i]];
        slot.asked    = 0;
        slot.probed   = false;
        slot.expected = 1.0;
        slot.depth    = 0;
        slot.tokens   = 1.0;
        slot.weighed  = Weighed{};
        slot.reason   = limits[i] == 0 ? DepthReason::limited : DepthReason::learning;
        depths[i]     = 0;
    }
    Weighed weighed;
    weighed.n = n;
    if (n == 0 || !decode_.known()) {
        return;
    }
    base_seconds_ = decode_seconds(seqs, plan_.depths.data(), n, n);
    chances(seqs, limits, n, Outlook::careful);
    if (draft_.known()) {
        best(limits, n, false, plan_);
        if (cut_ != Cut::rows) {
            even(seqs, limits, n, false, plan_);
        }
        weigh(plan_, n, seqs, true);
        const double catchup = plan_.seconds;
        weigh(plan_, n, seqs, false);
        if (plan_.drafting > 0) {
            weighed.rows   = plan_.rows;
            weighed.decode = plan_.decode;
            weighed.draft  = draft_.seconds(plan_.deepest, plan_.drafting);
        }
        const double seconds = plan_.seconds + (catchup - plan_.seconds) / kPayOff;
        const double feigned = kNoise * decode_.noise() * std::sqrt(1.0 / (1.0 + decode_.at(plan_.rows).count) + 1.0 / (1.0 + decode_.at(n).count));
        on_ = plan_.drafting > 0 && plan_.tokens * base_seconds_ > (on_ ? kStayOn + 0.5 * feigned : kTurnOn + feigned) * n * seconds;
        if (!on_) {
            plan_.depths.assign((size_t) n, 0);
        }
    } else {
        on_ = false;
    }
    const bool listening = listens();
    if (listening) {
        plan_.depths.assign((size_t) n, 0);
        on_ = false;
    }
    weigh(plan_, n, seqs, false);
    reference_rate_ = plan_.rate();

    bool burst = draft_.waiting(), resting = false;
    for (int32_t i = 0; i < n; ++i) {
        const bool off = limits[i] > 0 && plan_.depths[(size_t) i] == 0;
        burst   = burst || (off && slots_[(size_t) seqs[i]].burst);
        resting = resting || off;
    }
    if (outcome_ != Probe::none) {
        Timer & timer = outcome_ == Probe::acceptance ? acceptance_timer_ : outcome_ == Probe::cost ? cost_timer_ : baseline_timer_;
        const bool found = outcome_ == Probe::baseline ? !on_ : outcome_ == Probe::acceptance ? on_ && !resting : reference_rate_ > kFound * probed_against_;
        if (found) {
            timer.won(step_);
            other_text_ = OTHER_TEXT;
        } else {
            // Before a probe of a drafter that rested, rows were read for it: that costs more than the probe.
            const bool rested = n_listen_ > 0 && outcome_ == Probe::acceptance && acceptance_.poor();
            if (rested) {
                other_text_ = std::min(2 * other_text_, timer.longest);
            }
            timer.lost(step_, rested ? (double) timer.longest : last_loss_ / ((outcome_ == Probe::cost ? kRareCost : kRare) * base_seconds_));
        }
        outcome_ = Probe::none;
    }
    if (on_ && step_ >= baseline_timer_.due && step_ > decode_.at(n).last + baseline_timer_.interval) {
        probed_ = plan_;
        probed_.depths.assign((size_t) n, 0);
        weigh(probed_, n, seqs, false);
        if (probed_.seconds - n / reference_rate_ <= available() + base_seconds_) {
            probe_ = Probe::baseline;
        }
    }
    if (probe_ == Probe::none && !listening && resting && (burst || step_ >= acceptance_timer_.due)) {
        lacking_ = 0.0;
        if (probe_acceptance(seqs, limits, n, burst)) {
            probe_ = Probe::acceptance;
        } else if (n_listen_ > 0 && lacking_ > 0.0) {
            // It waits for its share of the time to be earned: until then nobody need listen.
            acceptance_timer_.due = step_ + (uint64_t) std::min(lacking_ / (kShare * base_seconds_) + 1.0, (double) acceptance_timer_.longest);
        }
    }
    if (probe_ == Probe::none && !listening && draft_.known() && step_ >= cost_timer_.due) {
        if (probe_cost(seqs, limits, n)) {
            probe_ = Probe::cost;
        } else {
            cost_timer_.lost(step_, 0.0);
        }
    }
    rest();
    probed_against_ = reference_rate_;

    const Plan & chosen = probe_ == Probe::none ? plan_ : probed_;
    weighed.chosen = chosen.seconds;
    weighed.base   = base_seconds_;
    weighed.on     = on_;
    for (int32_t i = 0; i < n; ++i) {
        Slot & slot = slots_[(size_t) seqs[i]];
        const int32_t depth = chosen.depths[(size_t) i];
        slot.depth   = depth;
        slot.weighed = weighed;
        slot.first   = limits[i] > 0 ? tokens_[(size_t) i * n_max_] : 0.0f;
        for (int32_t k = 0; k < depth; ++k) {
            slot.tokens += tokens_[(size_t) i * n_max_ + k];
        }
        slot.probed = depth != plan_.depths[(size_t) i];
        for (int32_t k = 0; k < plan_.depths[(size_t) i]; ++k) {
            slot.expected += tokens_[(size_t) i * n_max_ + k];
        }
        slot.asked  = depth;
        depths[i]   = depth;
        slot.reason = slot.probed     ? (probe_ == Probe::baseline ? DepthReason::baseline : DepthReason::probing)
                      : depth > 0     ? DepthReason::drafting
                      : limits[i] == 0 ? DepthReason::limited
                      : draft_.known() ? DepthReason::off
                                       : DepthReason::learning;
    }
}

void DepthControl::record(const DepthStep & step) {
    ++step_;
    int32_t deepest = 0, drafting = 0;
    double  tokens = 0.0;
    bool    changed = false;
    for (int32_t i = 0; i < step.n; ++i) {
        Slot & slot = slots_[(size_t) step.seqs[i]];
        const int32_t asked = std::max(slot.asked, step.drafted[i]);
        deepest = std::max(deepest, asked);
        drafting += asked > 0;
        // A prompt's rows wait as a whole; those of plain steps do not pile up where the drafter rests.
        slot.pending = asked > 0 ? 1 + step.accepted[i] : slot.pending + (n_listen_ > 0 && slot.pending >= 2 * RESTING_ROWS ? 0 : 1 + step.accepted[i]);
        slot.burst   = false;
        if (asked > 0) {
            changed    = acceptance_.add(step.seqs[i], asked, step.drafted[i], step.accepted[i], step_) || changed;
            slot.burst = slot.probed && probe_ == Probe::acceptance && step.accepted[i] > 0 && acceptance_.weight(step.seqs[i]) < kLearnt;
        }
        tokens += slot.probed ? 1.0 + step.accepted[i] : slot.expected;
        slot.asked = 0;
    }

    const Plan & chosen = probe_ == Probe::none ? plan_ : probed_;
    const bool   alone  = step.n_prompt_rows == 0;
    const double parted = decode_.known() ? decode_seconds(step.seqs, step.drafted, step.n, step.n_rows) : 0.0;
    double seconds = step.seconds_draft + step.seconds_decode;
    total_ += seconds;
    if (decode_.known() && n_ == step.n && chosen.seconds > 0.0) {
        // An interrupted step is nobody's fault. A first draft is what it is; what taking over rows for the first time
        // may have added is believed as far as its cost is.
        const double expected = parted;
        const double longest  = decode_.at(step.n_rows).count >= 3 ? 1.5 * expected : 3.0 * expected;
        const double decode   = alone ? std::min(step.seconds_decode, longest) : expected;
        const double most     = draft_.known() ? 2.0 * std::max(chosen.seconds - expected, 0.0) : step.seconds_draft;
        const double surprise = std::max(step.seconds_draft - most, 0.0);
        const bool   paused   = step.n_catchup > drafting * (deepest + 1);
        const double draft    = step.seconds_draft - (paused && !draft_.per_row_known() ? 0.75 : 1.0) * surprise;
        seconds = decode + draft;
    }
    elapsed_ += seconds;
    if (probe_ != Probe::none && n_ == step.n) {
        ++n_probes_;
        const double loss = seconds - tokens / reference_rate_;
        lost_ += loss;
        last_loss_ = std::max(loss, 0.0);
        spent_   = std::max(0.0, spent_ + loss);
        outcome_ = probe_;
    }
    if (alone) {
        // Of a decode in parts, the share that one in a piece would have taken.
        const double share = parted > 0.0 ? std::min(1.0, decode_.seconds(step.n_rows) / parted) : 1.0;
        decode_.add(step.n_rows, share * step.seconds_decode, step_);
    }
    if (drafting > 0) {
        draft_.add(deepest, drafting, step.seconds_draft, step.n_catchup, step_);
    }
    if (changed) {
        acceptance_timer_.reset(step_);
        cost_timer_.reset(step_);
    }
    for (int32_t i = 0; i < step.n; ++i) {
        slots_[(size_t) step.seqs[i]].probed = false;
    }
    probe_ = Probe::none;
    n_     = -1;
}

} // namespace pyllm::draft
