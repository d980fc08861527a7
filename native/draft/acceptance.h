// How likely the first k tokens of a draft are accepted, per slot and over the whole engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyllm::draft {

// Share of successes, the newest counting most. Forgets quickly when what comes now contradicts it.
struct Share {
    float    mean   = 0.0f;
    float    weight = 0.0f; // trials that it stands for
    float    recent = 0.0f; // the same over the last four or so
    uint64_t last   = 0;    // step of the last trial

    void add(bool success, float window, uint64_t step, bool watch);
};

// How to read a share of few trials.
enum class Outlook {
    even,    // as it is
    careful, // less a part of its uncertainty: for depths that are to be used
    hopeful, // more by that part, and as good as the position before where it was not tried lately: for depths that are to be tried
};

// A draft of depth d has a trial at each position until the first that is not accepted. A position that the drafter left empty
// counts as not accepted: what is asked for is what costs.
class Acceptance {
public:
    Acceptance(int32_t n_seq, int32_t n_max);

    void begin(int32_t seq); // the slot starts from what the engine knows
    // Returns whether what came contradicts what was expected.
    bool add(int32_t seq, int32_t asked, int32_t drafted, int32_t accepted, uint64_t step);
    // Into tokens[k - 1]: the chance that the first k are accepted; into rows[k - 1]: the chance that k are drafted at all.
    void chances(int32_t seq, int32_t depth, uint64_t step, Outlook outlook, float * tokens, float * rows) const;
    // Few drafts of any slot were accepted of late: another text is not expected to change that.
    bool     poor() const { return engine_[0].weight >= 4.0f && engine_[0].mean < 0.2f; }
    uint64_t last(int32_t seq) const { return slot_[(size_t) seq * n_max_].last; } // step of the last draft, 0: none yet
    float    weight(int32_t seq) const { return slot_[(size_t) seq * n_max_].weight; } // trials that its first position stands for

private:
    size_t             n_max_;
    std::vector<Share> slot_;   // [seq][position]: accepted, given that all before were
    std::vector<Share> drafted_; // [seq][position]: drafted, given that all before were
    std::vector<Share> engine_; // [position]
};

} // namespace pyllm::draft
