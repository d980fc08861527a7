// What a step costs, learned from measured steps: a decode of so many rows, and drafting so deep for so many slots.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyllm::draft {

// Places of a cost table: 1 to 32 each on its own, above that eight to an octave: 33-36, 37-40, …, 61-64, 65-72, …
int32_t cost_bucket(int32_t n);

// Running estimate of one duration. The first five samples count by their lower median, because a step that the machine interrupted is only
// ever too long; later ones move the estimate by at most a quarter of it. Five such in one direction are a new level, not an outlier.
struct Cost {
    double   seconds = 0.0;
    double   place   = 0.0; // mean of the rows measured here
    int32_t  count   = 0;
    int32_t  clipped = 0;   // successive samples beyond the clip, signed
    uint64_t last    = 0;   // step of the last sample
    std::array<double, 5> recent = {};

    void   add(double place, double seconds, uint64_t step, double most); // most: the first sample counts for no more
    double weight(uint64_t step) const; // samples that still count
};

// T(rows): monotone, linear between the buckets that were measured, and beyond them by the slope of a line through all of them.
class DecodeCost {
public:
    explicit DecodeCost(int32_t max_rows);

    void    add(int32_t rows, double seconds, uint64_t step);
    void    doubt();                       // the company changed: what is known is corrected faster
    bool    known() const { return n_samples_ >= 3; }
    int32_t reach() const { return reach_; }  // most rows ever measured
    double  seconds(double rows) const;
    void    seconds(int32_t first, int32_t n, double * out) const; // of first, first + 1, … rows
    double  floor(int32_t rows, uint64_t step) const; // not less than this: what fewer rows took lately
    const Cost & at(int32_t rows) const { return cells_[(size_t) std::min(cost_bucket(rows), (int32_t) cells_.size() - 1)]; }
    double   noise() const { return noise_; }         // mean deviation of one sample, as a share
    const std::vector<Cost> & cells() const { return cells_; }

private:
    struct knot { double rows, last, seconds, weight; }; // the same from rows to last

    void   fit(uint64_t step);
    double between(size_t knot, double rows) const; // seconds, knot being the last one that does not begin beyond rows

    int32_t           max_rows_;
    std::vector<Cost> cells_;
    std::vector<knot> knots_;  // by rows
    double            slope_     = 0.0;
    double            noise_     = 0.1;
    int32_t           reach_     = 0;
    int64_t           n_samples_ = 0;
};

// D(depth, slots): where it was measured, that; elsewhere k * depth^p * slots^q. p is 1 for a drafter that decodes once per token and 0 for one
// that drafts a block; q is 0 where rows are free and 1 where each costs the same.
// A draft after a pause first takes over the rows of the pause: rows beyond what the slots' last steps can have left are paid apart, per row.
class DraftCost {
public:
    DraftCost(int32_t n_max, int32_t n_seq);

    void    add(int32_t depth, int32_t slots, double seconds, int32_t n_catchup, uint64_t step);
    void    doubt();
    bool    known() const { return n_samples_ > 0; }
    bool    waiting() const { return waiting_rows_ > 0; } // one more draft, at once, tells what the rows have cost
    int32_t reach() const { return reach_; }  // deepest draft ever measured
    double  seconds(int32_t depth, int32_t slots) const;
    double  floor(int32_t depth, int32_t slots, uint64_t step) const;
    // Of a row taken over after a pause. A first sample may be an interruption: a quarter of it is believed.
    double  per_row() const { return catchup_.count > 1 ? catchup_.seconds : 0.25 * catchup_.seconds; }
    bool    per_row_known() const { return catchup_.count > 1; }
    const Cost & at(int32_t depth, int32_t slots) const { return cells_[place(depth, slots)]; }
    template <typename F> void each(F && visit) const {
        for (const measured & m : used_) {
            visit(m.depth, m.slots, at(m.depth, m.slots));
        }
    }

private:
    struct measured { int32_t depth, slots; double log_seconds; };

    size_t place(int32_t depth, int32_t slots) const { return (size_t) cost_bucket(depth) * width_ + (size_t) cost_bucket(slots); }
    void   fit(uint64_t step);

    size_t                width_;
    std::vector<Cost>     cells_;
    std::vector<measured> used_;        // cells that hold something
    std::vector<double>   depth_power_; // k * depth^p
    std::vector<double>   slots_power_; // slots^q
    std::vector<double>   log_;         // of 0, 1, 2, …
    Cost                  catchup_;
    double                waiting_seconds_ = 0.0; // a first draft that also caught up: parted as soon as one without is measured
    int32_t               waiting_rows_    = 0;
    int32_t               reach_           = 0;
    int64_t               n_samples_       = 0;
};

} // namespace pyllm::draft
