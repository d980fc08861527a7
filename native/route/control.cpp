#include "route/control.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <tuple>

namespace pyllm::route {

std::string route_hint(std::string_view name);

static thread_local bool draft_phase = false;

DraftPhase::DraftPhase() : before_(draft_phase) {
    draft_phase = true;
}

DraftPhase::~DraftPhase() {
    draft_phase = before_;
}

static constexpr const char * phases[PYLLM_PHASE_COUNT] = { "prefill", "decode", "verify", "draft" };

const char * phase_name(int32_t phase) {
    return phases[phase];
}

int32_t phase_of(int32_t n_q) {
    if (draft_phase) {
        return PYLLM_PHASE_DRAFT;
    }
    return n_q == 1 ? PYLLM_PHASE_DECODE : n_q <= max_verify_rows ? PYLLM_PHASE_VERIFY : PYLLM_PHASE_PREFILL;
}

namespace {

struct Control {
    std::atomic<int32_t> force[PYLLM_PHASE_COUNT];
    std::atomic<bool>    allow_cpu{ false };

    std::mutex                                                       mutex;
    std::map<std::tuple<std::string, int32_t, int32_t>, uint64_t>    counts;
    FILE *                                                           trace_file = nullptr;
    std::set<std::string>                                            traced;

    Control() {
        for (auto & route : force) {
            route = -1;
        }
        if (const char * text = getenv("PYLLM_ROUTE_TRACE"); text != nullptr && *text != 0 && strcmp(text, "0") != 0) {
            trace_file = strcmp(text, "1") == 0 || strcmp(text, "-") == 0 ? stderr : fopen(text, "a");
            if (trace_file == nullptr) {
                fprintf(stderr, "warning: PYLLM_ROUTE_TRACE names `%s`, which cannot be written: no trace\n", text);
            }
        }
        allow_cpu = getenv("PYLLM_ALLOW_CPU_ATTENTION") != nullptr && strcmp(getenv("PYLLM_ALLOW_CPU_ATTENTION"), "0") != 0;
    }
};

Control & control() {
    static Control control;
    return control;
}

}  // namespace

void force_phase(int32_t phase, int32_t route) {
    for (int32_t i = 0; i < PYLLM_PHASE_COUNT; ++i) {
        if (phase < 0 || phase == i) {
            control().force[i] = route;
        }
    }
}

int32_t forced(int32_t phase) {
    return control().force[phase].load(std::memory_order_relaxed);
}

std::string force_from_text(std::string_view text) {
    while (!text.empty()) {
        const std::string_view part = text.substr(0, text.find(','));
        text.remove_prefix(std::min(part.size() + 1, text.size()));
        const size_t           equals = part.find('=');
        const std::string_view name   = equals == std::string_view::npos ? part : part.substr(equals + 1);
        int32_t                phase  = -1;
        if (equals != std::string_view::npos) {
            for (int32_t i = 0; i < PYLLM_PHASE_COUNT; ++i) {
                phase = part.substr(0, equals) == phases[i] ? i : phase;
            }
            if (phase < 0) {
                return "phase `" + std::string(part.substr(0, equals)) + "` is not known: prefill, decode, verify or draft";
            }
        }
        const int32_t route = route_from_name(name);
        if (route < 0) {
            return "route `" + std::string(name) + "` is not known; " + route_hint(name);
        }
        force_phase(phase, route);
    }
    return "";
}

static DeviceFacts facts_of_devices = nullptr;

void set_device_facts(DeviceFacts facts) {
    facts_of_devices = facts;
}

bool device_facts(const char * device, Key & key) {
    return facts_of_devices != nullptr && facts_of_devices(device, key);
}

void allow_cpu(bool allow) {
    control().allow_cpu = allow;
}

bool cpu_allowed() {
    return control().allow_cpu;
}

void count(const char * device, int32_t route, int32_t phase) {
    Control &                   c = control();
    std::lock_guard<std::mutex> lock(c.mutex);
    ++c.counts[{ device, route, phase }];
}

std::vector<pyllm_route_count> counts() {
    Control &                      c = control();
    std::lock_guard<std::mutex>    lock(c.mutex);
    std::vector<pyllm_route_count> list;
    for (const auto & [key, n_nodes] : c.counts) {
        pyllm_route_count one{};
        strncpy(one.device, std::get<0>(key).c_str(), sizeof(one.device) - 1);
        one.route   = std::get<1>(key);
        one.phase   = std::get<2>(key);
        one.n_nodes = n_nodes;
        list.push_back(one);
    }
    return list;
}

bool tracing() {
    return control().trace_file != nullptr;
}

void trace(const char * device, const std::string & text) {
    Control &                   c    = control();
    const std::string           line = std::string(device) + ": " + text;
    std::lock_guard<std::mutex> lock(c.mutex);
    if (c.traced.insert(line).second) {
        fprintf(c.trace_file, "route %s\n", line.c_str());
        fflush(c.trace_file);
    }
}

}  // namespace pyllm::route
