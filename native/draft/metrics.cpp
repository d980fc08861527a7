#include "draft/metrics.h"

#include <algorithm>
#include <mutex>
#include <sstream>

namespace pyllm::draft {

namespace {

constexpr const char * STATES[] = { "idle", "drafting", "empty", "limited", "room", "replay", "failed", "off" };

struct slot_report {
    slot_state state = slot_state::idle;
    int32_t    limit = 0;
    int32_t    depth = 0; // tokens of the last draft
};

struct {
    std::mutex                  mutex;
    std::vector<drafter_report> drafters;
    std::vector<int32_t>        last;
    std::vector<slot_report>    slots;
} told;

// The caller holds the mutex.
slot_report & slot_of(int32_t slot) {
    told.slots.resize(std::max(told.slots.size(), (size_t) slot + 1));
    return told.slots[(size_t) slot];
}

bool all_off(size_t slot) {
    return std::all_of(told.drafters.begin(), told.drafters.end(), [slot](const drafter_report & d) { return slot < d.off.size() && !d.off[slot].empty(); });
}

std::string quoted(const std::string & value) {
    std::string text = "\"";
    for (const char c : value) {
        if (c == '\n') {
            text += "\\n";
            continue;
        }
        if (c == '"' || c == '\\') {
            text += '\\';
        }
        text += c;
    }
    return text + '"';
}

class page {
public:
    void family(const char * name, const char * type, const char * help) {
        name_ = name;
        out_ << "# HELP llamacpp:" << name << ' ' << help << "\n# TYPE llamacpp:" << name << ' ' << type << '\n';
    }
    template <typename Value> void line(const std::string & labels, Value value) { out_ << "llamacpp:" << name_ << '{' << labels << "} " << value << '\n'; }

    // One line per drafter; only_ours: of those that count it.
    template <typename Get> void each(const char * name, const char * type, const char * help, bool only_ours, Get && get) {
        if (only_ours && std::none_of(told.drafters.begin(), told.drafters.end(), [](const drafter_report & d) { return d.ours; })) {
            return;
        }
        family(name, type, help);
        for (const drafter_report & d : told.drafters) {
            if (d.ours || !only_ours) {
                line("drafter=" + quoted(d.name), get(d));
            }
        }
    }

    std::string text() const { return out_.str(); }

private:
    std::ostringstream out_;
    const char *       name_ = "";
};

std::string slot_label(size_t slot) { return "slot=\"" + std::to_string(slot) + '"'; }

} // namespace

void tell_drafters(std::vector<drafter_report> drafters, std::vector<int32_t> last) {
    const std::lock_guard<std::mutex> lock(told.mutex);
    if (!last.empty()) {
        slot_of((int32_t) last.size() - 1); // slots show before their first request
    }
    told.drafters = std::move(drafters);
    told.last     = std::move(last);
}

void tell_slot(int32_t slot, slot_state state, int32_t limit) {
    const std::lock_guard<std::mutex> lock(told.mutex);
    slot_report & of = slot_of(slot);
    of.state = state;
    of.limit = limit;
    of.depth = 0;
}

void tell_drafted(int32_t slot, int32_t n_tokens) {
    const std::lock_guard<std::mutex> lock(told.mutex);
    slot_report & of = slot_of(slot);
    of.depth = n_tokens;
    of.state = n_tokens > 0 ? slot_state::drafting : all_off((size_t) slot) ? slot_state::failed : slot_state::empty;
}

std::string prometheus() {
    const std::lock_guard<std::mutex> lock(told.mutex);
    if (told.drafters.empty()) {
        return "";
    }
    page out;
    out.each("drafter_depth_max", "gauge", "Most tokens drafted at once.", false, [](const drafter_report & d) { return d.n_max; });
    out.each("drafter_drafts_total", "counter", "Drafts with at least one token.", false, [](const drafter_report & d) { return d.n_drafts; });
    out.each("drafter_tokens_total", "counter", "Tokens drafted.", false, [](const drafter_report & d) { return d.n_drafted; });
    out.each("drafter_accepted_tokens_total", "counter", "Drafted tokens that were accepted.", false, [](const drafter_report & d) { return d.n_accepted; });
    out.each("drafter_seconds_total", "counter", "Time spent drafting.", false, [](const drafter_report & d) { return d.seconds_draft; });
    out.each("drafter_rows_seconds_total", "counter", "Time spent taking over rows of the target.", true, [](const drafter_report & d) { return d.seconds_rows; });
    out.each("drafter_rows_total", "counter", "Rows of the target taken over.", true, [](const drafter_report & d) { return d.n_rows; });
    out.each("drafter_decodes_total", "counter", "Decodes of the draft context.", true, [](const drafter_report & d) { return d.n_decodes; });
    out.each("drafter_failures_total", "counter", "Failures, of one slot each, after which it went on without a draft.", true,
             [](const drafter_report & d) { return d.n_failures; });

    out.family("slot_draft_limit", "gauge", "Tokens that a slot's last draft was allowed, by its request and its room.");
    for (size_t slot = 0; slot < told.slots.size(); ++slot) {
        out.line(slot_label(slot), told.slots[slot].limit);
    }
    out.family("slot_draft_depth", "gauge", "Tokens of a slot's last draft, under the drafter that it is of.");
    for (size_t slot = 0; slot < told.slots.size(); ++slot) {
        for (size_t i = 0; i < told.drafters.size(); ++i) {
            const bool its = slot < told.last.size() && told.last[slot] == (int32_t) i;
            out.line(slot_label(slot) + ",drafter=" + quoted(told.drafters[i].name), its ? told.slots[slot].depth : 0);
        }
    }
    out.family("slot_draft_state", "gauge", "1 for the state a slot is in: why its last step had the draft it had.");
    for (size_t slot = 0; slot < told.slots.size(); ++slot) {
        for (size_t state = 0; state < std::size(STATES); ++state) {
            out.line(slot_label(slot) + ",state=\"" + STATES[state] + '"', (size_t) told.slots[slot].state == state ? 1 : 0);
        }
    }
    out.family("slot_drafter_off", "gauge", "1 for each drafter that is off for a slot, with the reason.");
    for (const drafter_report & d : told.drafters) {
        for (size_t slot = 0; slot < d.off.size(); ++slot) {
            if (!d.off[slot].empty()) {
                out.line(slot_label(slot) + ",drafter=" + quoted(d.name) + ",reason=" + quoted(d.off[slot]), 1);
            }
        }
    }
    return out.text();
}

} // namespace pyllm::draft
