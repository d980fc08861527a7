// What the drafters of a server did and took since its start, and what each slot drafts, in Prometheus' text format.
//
// Drafters are changed on the thread that decodes; /metrics is answered on another, also in the middle of a draft. So what it reads is told here
// after each decode whose rows they take over, each draft and verification. A process has one server, and this has one set of numbers: the last drafters that told theirs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyllm::draft {

// Why a slot's last step had the draft it had.
enum class slot_state : int32_t {
    idle,     // generates nothing
    drafting,
    empty,    // might draft, and no drafter proposed anything
    limited,  // its request allows no draft
    room,     // no room: at the end of its context or of what it may generate
    replay,   // a plain step, after a block that was verified again
    failed,   // each drafter is off for it
    off,      // depth control: a draft would cost more than it brings
};

struct drafter_report {
    std::string name;
    int32_t     n_max         = 0; // tokens at once at most
    uint64_t    n_drafts      = 0; // with at least one token
    uint64_t    n_drafted     = 0; // tokens
    uint64_t    n_accepted    = 0;
    double      seconds_draft = 0.0;
    // only of drafters that are ours
    bool        ours          = false;
    uint64_t    n_decodes     = 0; // of the draft context
    uint64_t    n_rows        = 0; // of the target, taken over
    uint64_t    n_failures    = 0; // of one slot each
    double      seconds_rows  = 0.0;
    std::vector<std::string> off; // per slot, why it drafts no more, "" if it does
};

// last: per slot, the place in `drafters` of the one whose draft it had last, -1: none yet.
void tell_drafters(std::vector<drafter_report> drafters, std::vector<int32_t> last);
// limit: tokens that the slot's next draft may have, by its request and its room.
void tell_slot(int32_t slot, slot_state state, int32_t limit);
void tell_drafted(int32_t slot, int32_t n_tokens);

// Empty without drafters.
std::string prometheus();

} // namespace pyllm::draft
