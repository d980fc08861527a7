// How many tokens each generating slot drafts, step by step: the depths that bring the most tokens per second, by what was measured.
//
// A step of n slots with depths d_i decodes R = sum(1 + d_i) rows. It costs T(R) + D(max d_i, number of d_i > 0) and brings
// sum(1 + P_i(1) + … + P_i(d_i)) tokens, P_i(k) being the chance that the first k tokens of slot i are accepted. T, D and P are running
// estimates. Depths that are not in use are tried again from time to time; what that costs is accounted, and stays below a share of the time.
// Where a decode is cut because its sequences have different numbers of rows, T is paid for each part: depths are equal then unless that costs more.
//
// No clock and no randomness: the same records give the same depths.
#pragma once

#include "draft/acceptance.h"
#include "draft/depth_cost.h"
#include "draft/micro_batches.h"
#include "draft/resting.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyllm::draft {

enum class DepthReason : int32_t {
    idle     = 0, // not generating
    learning = 1, // no step, or no draft, was measured yet
    limited  = 2, // the request allows no draft
    off      = 3, // a draft would cost more than it brings
    drafting = 4,
    probing  = 5, // a depth that is not in use is measured
    baseline = 6, // the step without any draft is measured
};

struct DepthStep {
    int32_t         n              = 0;
    const int32_t * seqs           = nullptr;
    const int32_t * drafted        = nullptr;
    const int32_t * accepted       = nullptr;
    double          seconds_draft  = 0.0;
    double          seconds_decode = 0.0; // everything else that is done once per step
    int32_t         n_rows         = 0;   // of the generating slots
    int32_t         n_catchup      = 0;   // rows that the drafter took over within seconds_draft
    int32_t         n_prompt_rows  = 0;   // more rows in the same decode: its time teaches nothing
};

struct DepthSlot {
    int32_t     depth    = 0;
    DepthReason reason   = DepthReason::idle;
    double      rate     = 0.0; // tokens per second expected at this depth; 0: not known
    double      rate_off = 0.0; // if no slot drafted
    std::string text;
};

struct DepthTotals {
    uint64_t n_steps         = 0;
    uint64_t n_probes        = 0;
    double   seconds         = 0.0;
    double   seconds_probing = 0.0; // lost to probes
    double   seconds_catchup = 0.0; // per row
};

class DepthControl {
public:
    DepthControl(int32_t n_seq, int32_t n_max, Cut cut, int32_t n_listen);

    // A step that belongs to no request, taken to learn what it costs: `slots` drafts of `depth` tokens, and one decode of `rows` rows.
    void measure(int32_t depth, int32_t slots, int32_t rows, double seconds_draft, double seconds_decode);

    // n_catchup: rows that the first draft would have to take over, known to the caller (a prompt whose rows were deferred).
    void begin(int32_t seq, int32_t n_catchup);
    void end(int32_t seq);
    bool generating(int32_t seq) const { return slots_[(size_t) seq].generating; }

    // seqs are distinct and generating; wishes are the most that each may draft. Without a record in between, asks the same again.
    void choose(const int32_t * seqs, const int32_t * wishes, int32_t n, int32_t * depths);
    void record(const DepthStep & step);
    // Whether the drafter need not read the rows of the step that was chosen last: nothing is drafted, now or in the next n_listen steps.
    bool rests() const { return resting_; }
    // The same of a prompt: the rest will last until what was read of it is behind a gap.
    bool skips_prompts() const;
    // The step was as a choice that rests has it, of the same slots; what is chosen for them next rests, too, or has to be asked for.
    bool rested(double seconds);
    // Whether rested() may follow: the last choice rests, was not recorded yet, and all of its slots still generate.
    bool chose_rest() const;

    DepthSlot         slot(int32_t seq) const;
    void              acceptance(int32_t seq, float * chances) const; // n_max of them: the first k + 1 tokens of a draft are accepted
    DepthTotals       totals() const;
    const DecodeCost & decode_cost() const { return decode_; }
    const DraftCost &  draft_cost() const { return draft_; }
    int32_t           n_seq() const { return (int32_t) slots_.size(); }
    int32_t           n_max() const { return n_max_; }

private:
    enum class Probe { none, acceptance, cost, baseline };

    // Waits twice as long after each probe that found nothing, within limits; `affordable` steps are enough if a probe costs little.
    struct Timer {
        uint64_t first, shortest, longest;
        uint64_t interval = 0, due = 0;

        void reset(uint64_t step) {
            interval = first;
            due      = std::min(due, step + first);
        }
        void won(uint64_t step) {
            interval = first;
            due      = step + first;
        }
        void lost(uint64_t step, double affordable) {
            const uint64_t most = affordable > (double) longest ? longest : std::max((uint64_t) std::max(affordable, 0.0), shortest);
            interval = std::min(std::max(2 * interval, first), most);
            due      = step + interval;
        }
    };

    // What a choice weighed, for the report. The best plan that drafts has no rows where there was none.
    struct Weighed {
        int32_t n = 0, rows = 0;
        bool    on = false; // some slot drafts
        double  chosen = 0.0, base = 0.0, decode = 0.0, draft = 0.0; // seconds: the chosen plan, no drafts, the two parts of the best plan that drafts
    };

    struct Slot {
        bool        generating = false;
        int32_t     pending    = 0;     // rows that the drafter has not taken over
        int32_t     asked      = 0;
        bool        probed     = false;
        bool        burst      = false; // the last probe was accepted: go on
        double      expected   = 1.0;   // tokens of a step, probes aside
        int32_t     depth      = 0;     // of the last choice, as what follows
        DepthReason reason     = DepthReason::idle;
        double      tokens     = 1.0;   // of a step at this depth
        float       first      = 0.0f;  // chance that one drafted token is accepted
        Weighed     weighed;
    };

    struct Plan {
        std::vector<int32_t> depths;
        double  tokens = 0.0, seconds = 0.0, decode = 0.0; // decode: a part of seconds
        int32_t rows = 0, deepest = 0, drafting = 0;

        double rate() const { return tokens / seconds; }
    };

    struct candidate { float gain, rows; int32_t slot, depth; };

    void   chances(const int32_t * seqs, const int32_t * limits, int32_t n, Outlook outlook);
    void   best(const int32_t * limits, int32_t n, bool hopeful, Plan & plan);
    void   even(const int32_t * seqs, const int32_t * limits, int32_t n, bool hopeful, Plan & plan);
    void   weigh(Plan & plan, int32_t n, const int32_t * seqs, bool with_catchup);
    double decode_seconds(const int32_t * seqs, const int32_t * depths, int32_t n, double rows);
    bool   probe_acceptance(const int32_t * seqs, const int32_t * limits, int32_t n, bool burst);
    bool   probe_cost(const int32_t * seqs, const int32_t * limits, int32_t n);
    double draft_seconds(int32_t depth, int32_t slots) const;
    double available() const;
    void   company_changed();
    bool   listens();
    void   rest();

    int32_t           n_max_;
    Cut               cut_;
    uint64_t          n_listen_;
    DecodeCost        decode_;
    DraftCost         draft_;
    Acceptance        acceptance_;
    std::vector<Slot> slots_;

    uint64_t step_     = 0;
    uint64_t n_probes_ = 0;
    double   elapsed_  = 0.0, spent_ = 0.0, lost_ = 0.0, total_ = 0.0;
    bool     on_       = false; // some slot drafts, probes aside
    bool     resting_  = false;
    uint64_t other_text_ = OTHER_TEXT; // steps until it is tried on a slot that has come; each text on which it was wrong doubles them
    uint64_t listens_  = 0;     // until this step nothing is drafted: the drafter reads what it missed
    Probe    probe_    = Probe::none;
    Probe    outcome_  = Probe::none; // of the last step: its result is judged by the next choice
    double   reference_rate_ = 0.0;   // of the choice without the probe
    double   probed_against_ = 0.0;   // the same, of the last step
    double   base_seconds_   = 0.0;   // T(n)
    double   last_loss_      = 0.0;   // of the last probe, seconds
    double   lacking_        = 0.0;   // what the account is short of for a probe, seconds
    Timer    acceptance_timer_{ 16, 8, 512 }, cost_timer_{ 2, 8, 128 }, baseline_timer_{ 8, 8, 512 };

    int32_t n_ = 0;    // of the last choice
    Plan    plan_;     // chosen, probes aside
    Plan    probed_;
    std::vector<float>     tokens_, rows_; // [slot of this choice][position]
    std::vector<candidate> candidates_;
    std::vector<int32_t>   seqs_, limits_, sorted_, lengths_, parts_, none_;
    std::vector<double>    decode_table_, draft_table_;
};

} // namespace pyllm::draft
