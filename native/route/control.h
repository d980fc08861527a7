// What a process asks of its routes: forced ones, attention on the CPU, and the count of what ran.
#pragma once

#include "route/route.h"

#include <vector>

namespace pyllm::route {

// Rows that one sequence sends at most to be verified; more are a prompt.
inline constexpr int32_t max_verify_rows = 64;

// The calling thread computes a drafter's graph while one of these lives.
class DraftPhase {
public:
    DraftPhase();
    ~DraftPhase();
    DraftPhase(const DraftPhase &)             = delete;
    DraftPhase & operator=(const DraftPhase &) = delete;

private:
    bool before_;
};

int32_t phase_of(int32_t n_q);

// Forced routes come from `force`, and at start from PYLLM_FORCE_ROUTE: `mma` or `decode=vec,verify=mma`. -1: none.
void    force_phase(int32_t phase, int32_t route);
int32_t forced(int32_t phase);
// "" if the text was understood, else what is wrong with it.
std::string force_from_text(std::string_view text);

void allow_cpu(bool allow);
bool cpu_allowed();

// The GPU backend says what its devices are: fills the device's axes of `key`, false for a name that is none of its own.
using DeviceFacts = bool (*)(const char * device, Key & key);
void set_device_facts(DeviceFacts facts);
bool device_facts(const char * device, Key & key);

void                           count(const char * device, int32_t route, int32_t phase);
std::vector<pyllm_route_count> counts();

// Lines of PYLLM_ROUTE_TRACE: the first time that a node's key is seen, its decision. The file is stderr where the value is `1` or `-`.
bool tracing();
void trace(const char * device, const std::string & text);

const char * phase_name(int32_t phase);

}  // namespace pyllm::route
