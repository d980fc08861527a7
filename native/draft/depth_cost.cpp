#include "draft/depth_cost.h"

#include <cmath>

namespace pyllm::draft {

namespace {

constexpr double  kClip     = 0.25;   // of the estimate: what one sample may differ by
constexpr double  kWindow   = 48.0;   // samples
constexpr double  kHalfLife = 1024.0; // steps after which a measurement counts half
constexpr double  kDrift    = 0.02;   // share of a deviation that is taken for a change of all costs, as by a longer context
constexpr double  kNoise    = 1.5;    // mean deviations that a measured cost may be too high by
constexpr double  kSurprise = 2.5;    // of what was expected: a first sample is not believed beyond
constexpr int32_t kTrusted  = 2;      // samples of which the lower median is no outlier
constexpr int32_t kFew      = 4;      // rows that a slot leaves besides its drafted ones, without having paused
constexpr int32_t kCatchup  = 16;     // rows; what fewer cost is not seen behind a draft
constexpr uint64_t kLongAgo = 256;     // steps; a cost measured longer ago counts for no more than kStale samples
constexpr int32_t kStale    = 16;
constexpr int32_t kDoubted  = 8;      // samples that are left of a doubted estimate
constexpr double  kShortest = 1e-7;   // seconds; below this a cost is nothing

double lower_median(std::array<double, 5> values, int32_t n) {
    const auto middle = values.begin() + (n - 1) / 2;
    std::nth_element(values.begin(), middle, values.begin() + n);
    return *middle;
}

double squared(double seconds) { return std::max(seconds * seconds, kShortest * kShortest); }

} // namespace

int32_t cost_bucket(int32_t n) {
    if (n <= 32) {
        return std::max(n, 1) - 1;
    }
    int32_t octave = 5;
    while (((n - 1) >> (octave + 1)) > 0) {
        ++octave;
    }
    return 32 + 8 * (octave - 5) + ((n - 1 - (1 << octave)) >> (octave - 3));
}

void Cost::add(double at, double value, uint64_t step, double most) {
    recent[(size_t) (count % 5)] = value;
    place = count == 0 ? at : place + (at - place) / std::min((double) count + 1.0, kWindow);
    ++count;
    if (count <= 5) {
        last    = step;
        seconds = lower_median(recent, count);
        if (count < kTrusted) {
            seconds = std::min(seconds, most);
        }
        return;
    }
    if (step - last > kLongAgo) {
        count = std::min(count, kStale);
    }
    const double limit = kClip * seconds;
    const double off   = value - seconds;
    if (std::fabs(off) <= limit) {
        clipped = 0;
    } else {
        clipped = off > 0 ? std::max(clipped, 0) + 1 : std::min(clipped, 0) - 1;
        if (std::abs(clipped) >= 5) {
            seconds = lower_median(recent, 5);
            count   = 5;
            clipped = 0;
            last    = step;
            return;
        }
    }
    last = step;
    seconds += std::clamp(off, -limit, limit) / std::min((double) count, kWindow);
}

double Cost::weight(uint64_t step) const {
    return count == 0 ? 0.0 : std::min((double) count, kWindow) / (1.0 + (double) (step - last) / kHalfLife);
}

DecodeCost::DecodeCost(int32_t max_rows) : max_rows_(max_rows), cells_((size_t) cost_bucket(max_rows) + 1) { knots_.reserve(cells_.size()); }

void DecodeCost::add(int32_t rows, double value, uint64_t step) {
    rows  = std::min(rows, max_rows_);
    value = std::max(value, kShortest);
    Cost & cell = cells_[(size_t) cost_bucket(rows)];
    if (cell.count >= 5 && cell.seconds > 0) {
        const double usual  = std::max(cell.seconds + slope_ * (rows - cell.place), kShortest);
        const double off    = std::clamp(value / usual - 1.0, -kClip, kClip);
        const double factor = 1.0 + kDrift * off;
        noise_ += (std::fabs(off) - noise_) / kWindow;
        // Only a settled estimate tells a drift from its own error.
        if (cell.count >= (int32_t) kWindow) {
            for (Cost & other : cells_) {
                if (&other != &cell) {
                    other.seconds *= factor;
                }
            }
        }
    }
    cell.add(rows, value, step, known() ? kSurprise * seconds(rows) : HUGE_VAL);
    ++n_samples_;
    reach_ = std::max(reach_, rows);
    fit(step);
}

void DecodeCost::doubt() {
    for (Cost & cell : cells_) {
        cell.count = std::min(cell.count, kDoubted);
    }
}

void DecodeCost::fit(uint64_t step) {
    knots_.clear();
    double sw = 0, sx = 0, sy = 0;
    for (const Cost & cell : cells_) {
        if (cell.count > 0) {
            // Relative errors count: 1 ms too much on 10 ms weighs like 10 ms on 100 ms.
            const double w = cell.weight(step) / squared(cell.seconds);
            knots_.push_back({ cell.place, cell.place, cell.seconds, w });
            sw += w;
            sx += w * cell.place;
            sy += w * cell.seconds;
        }
    }
    const double mx = sx / sw, my = sy / sw;
    double sxx = 0, sxy = 0;
    for (const knot & k : knots_) {
        sxx += k.weight * (k.rows - mx) * (k.rows - mx);
        sxy += k.weight * (k.rows - mx) * (k.seconds - my);
    }
    // Before a second place is measured, half of a step is taken to grow with its rows. That guess weighs like a quarter of a sample.
    const double guess  = 0.5 * my / mx;
    const double weight = 0.25 * mx * mx / squared(my);
    slope_ = std::clamp((sxy + weight * guess) / (sxx + weight), 0.0, my / mx);

    // Few samples lean on the line; then neighbours that contradict each other are pooled, so that more rows never cost less.
    for (knot & k : knots_) {
        const double samples = k.weight * squared(k.seconds);
        const double line    = my + slope_ * (k.rows - mx);
        k.seconds = line + (k.seconds - line) * samples / (samples + 1.0);
        k.weight  = samples + 1.0;
    }
    size_t n = 0;
    for (size_t i = 0; i < knots_.size(); ++i) {
        knots_[n++] = knots_[i];
        while (n > 1 && knots_[n - 2].seconds > knots_[n - 1].seconds) {
            knot & a = knots_[n - 2];
            const knot & b = knots_[n - 1];
            const double w = a.weight + b.weight;
            a = { a.rows, b.last, (a.seconds * a.weight + b.seconds * b.weight) / w, w };
            --n;
        }
    }
    knots_.resize(n);
}

double DecodeCost::between(size_t i, double rows) const {
    const knot & a = knots_[i];
    if (rows < a.rows) { // before the first
        return std::max(a.seconds - slope_ * (a.rows - rows), 0.1 * a.seconds);
    }
    if (rows <= a.last) {
        return a.seconds;
    }
    if (i + 1 == knots_.size()) {
        return a.seconds + slope_ * (rows - a.last);
    }
    const knot & b = knots_[i + 1];
    return a.seconds + (b.seconds - a.seconds) * (rows - a.last) / (b.rows - a.last);
}

double DecodeCost::seconds(double rows) const {
    if (knots_.empty()) {
        return 0.0;
    }
    size_t i = 0;
    while (i + 1 < knots_.size() && knots_[i + 1].rows <= rows) {
        ++i;
    }
    return between(i, rows);
}

void DecodeCost::seconds(int32_t first, int32_t n, double * out) const {
    size_t knot = 0;
    for (int32_t r = 0; r < n; ++r) {
        while (knot + 1 < knots_.size() && knots_[knot + 1].rows <= first + r) {
            ++knot;
        }
        out[r] = knots_.empty() ? 0.0 : between(knot, first + r);
    }
}

double DecodeCost::floor(int32_t rows, uint64_t step) const {
    const auto trusted = [&](const Cost & cell) { return cell.count >= kTrusted && step - cell.last < (uint64_t) (2 * kHalfLife); };
    const auto lowest  = [&](const Cost & cell, double seconds) {
        return seconds * (1.0 - kNoise * noise_ / std::sqrt((double) std::min(cell.count, (int32_t) kWindow)));
    };
    if (trusted(at(rows))) {
        return lowest(at(rows), seconds(rows));
    }
    double best = 0.0;
    for (const Cost & cell : cells_) {
        if (trusted(cell) && cell.place <= rows) {
            best = std::max(best, lowest(cell, std::min(cell.seconds, seconds(cell.place))));
        }
    }
    // Between measured places a cost may rise in one stair; beyond them at least half of the slope so far is expected.
    return std::min(best + 0.5 * slope_ * std::max(0, rows - reach_), seconds(rows));
}

DraftCost::DraftCost(int32_t n_max, int32_t n_seq)
    : width_((size_t) cost_bucket(n_seq) + 1), cells_(((size_t) cost_bucket(n_max) + 1) * width_), depth_power_((size_t) n_max + 1, 0.0),
      slots_power_((size_t) n_seq + 1, 1.0), log_((size_t) std::max(n_max, n_seq) + 1, 0.0) {
    for (size_t i = 1; i < log_.size(); ++i) {
        log_[i] = std::log((double) i);
    }
}

void DraftCost::doubt() {
    for (const measured & m : used_) {
        Cost & cell = cells_[place(m.depth, m.slots)];
        cell.count = std::min(cell.count, kDoubted);
    }
}

void DraftCost::add(int32_t depth, int32_t slots, double value, int32_t n_catchup, uint64_t step) {
    reach_ = std::max(reach_, depth);
    const int32_t extra = std::max(0, n_catchup - slots * (depth + kFew));
    if (extra > 0) {
        if (n_samples_ == 0) {
            waiting_seconds_ = value;
            waiting_rows_    = extra;
            return;
        }
        if (extra >= kCatchup) {
            // What lies within the noise of the draft itself is not taken for the rows.
            catchup_.add(1.0, std::max(value - (1.0 + kClip) * seconds(depth, slots), 0.0) / extra, step, HUGE_VAL);
        }
        if (!per_row_known() || per_row() * extra > 0.5 * value) {
            return;
        }
        value -= per_row() * extra;
    }
    Cost & cell = cells_[place(depth, slots)];
    auto known = std::find_if(used_.begin(), used_.end(), [&](const measured & m) { return place(m.depth, m.slots) == place(depth, slots); });
    if (known == used_.end()) {
        known = used_.insert(known, { depth, slots, 0.0 });
    }
    cell.add(1.0, std::max(value, kShortest), step, n_samples_ > 0 ? kSurprise * std::max(seconds(depth, slots), kShortest) : HUGE_VAL);
    known->log_seconds = std::log(std::max(cell.seconds, kShortest));
    ++n_samples_;
    // A settled estimate moves the fit little: every eighth sample is enough.
    if (cell.count < 16 || n_samples_ % 8 == 0) {
        fit(step);
    }
    if (waiting_rows_ >= kCatchup) {
        catchup_.add(1.0, std::max(waiting_seconds_ - (1.0 + kClip) * seconds(depth, slots), 0.0) / waiting_rows_, step, HUGE_VAL);
    }
    waiting_rows_ = 0;
}

void DraftCost::fit(uint64_t step) {
    // Least squares of log seconds = k + p log depth + q log slots, drawn to p = 0.7 and q = 0.4 as if by one good measurement.
    constexpr double p0 = 0.7, q0 = 0.4, pull = 6.0, precision = 100.0;
    double sw = 0, sx = 0, sz = 0, sy = 0, xx = 0, zz = 0, xz = 0, xy = 0, zy = 0;
    for (const measured & m : used_) {
        const double w = precision * at(m.depth, m.slots).weight(step);
        const double x = log_[(size_t) m.depth], z = log_[(size_t) m.slots], y = m.log_seconds;
        sw += w;
        sx += w * x;
        sz += w * z;
        sy += w * y;
        xx += w * x * x;
        zz += w * z * z;
        xz += w * x * z;
        xy += w * x * y;
        zy += w * z * y;
    }
    const double mx = sx / sw, mz = sz / sw, my = sy / sw;
    xx += pull - sw * mx * mx;
    zz += pull - sw * mz * mz;
    xz -= sw * mx * mz;
    xy += pull * p0 - sw * mx * my;
    zy += pull * q0 - sw * mz * my;
    const double det = xx * zz - xz * xz;
    const double p = std::clamp((xy * zz - zy * xz) / det, 0.0, 1.2);
    const double q = std::clamp((zy * xx - xy * xz) / det, 0.0, 1.2);
    const double k = std::exp(my - p * mx - q * mz);
    for (size_t d = 1; d < depth_power_.size(); ++d) {
        depth_power_[d] = k * std::exp(p * log_[d]);
    }
    for (size_t n = 1; n < slots_power_.size(); ++n) {
        slots_power_[n] = std::exp(q * log_[n]);
    }
}

double DraftCost::seconds(int32_t depth, int32_t slots) const {
    if (depth <= 0 || slots <= 0) {
        return 0.0;
    }
    const double guess = depth_power_[(size_t) depth] * slots_power_[(size_t) slots];
    const Cost & cell  = at(depth, slots);
    return cell.count == 0 ? guess : guess + (cell.seconds - guess) * cell.count / (cell.count + 1.0);
}

double DraftCost::floor(int32_t depth, int32_t slots, uint64_t step) const {
    double best = 0.0;
    for (const measured & m : used_) {
        const Cost & cell = cells_[place(m.depth, m.slots)];
        if (cell.count >= kTrusted && m.depth <= depth && m.slots <= slots && step - cell.last < (uint64_t) (2 * kHalfLife)) {
            best = std::max(best, cell.seconds);
        }
    }
    return std::min(best, seconds(depth, slots));
}

} // namespace pyllm::draft
