// One sequence of a drafter as bytes.
#include "draft/driver.h"

#include <cstring>

namespace pyllm::draft {

namespace {

constexpr uint32_t VERSION = 1;

// Native byte order: the target's state, without which this one is of no use, has it too.
struct header {
    uint32_t version;
    char     kind[20];
    uint32_t width;     // floats of the carried row
    int32_t  end;       // positions of the draft memory, 0: none is contained
    int32_t  carry_pos; // -1: no row follows
    uint32_t partial;
    uint64_t n_memory;  // bytes of the draft context's own state, after the row
};

} // namespace

// What can be cut back needs no copy of its memory to go back.
bool driver::saves_memory(bool partial) const { return settings_.deferred && cells_.own() && !(partial && cells_.cuts()); }

size_t driver::state_size(llama_seq_id seq, bool partial) {
    flush({ seq });
    const sequence & s = at(seq);
    return sizeof(header) + (s.carry_pos >= 0 ? s.carry.size() * sizeof(float) : 0) + (saves_memory(partial) ? cells_.state_size(seq, partial) : 0);
}

std::string driver::get_state(llama_seq_id seq, bool partial, uint8_t * data, size_t size) {
    const size_t need = state_size(seq, partial);
    if (size != need) {
        return "the drafter's state has " + std::to_string(need) + " bytes, the buffer " + std::to_string(size);
    }
    const sequence & s = at(seq);
    const size_t n_carry = s.carry_pos >= 0 ? s.carry.size() * sizeof(float) : 0;
    header head = {};
    head.version   = VERSION;
    head.width     = (uint32_t) s.carry.size();
    head.end       = settings_.deferred && cells_.own() ? cells_.end(seq) : 0;
    head.carry_pos = s.carry_pos;
    head.partial   = partial;
    head.n_memory  = size - sizeof(head) - n_carry;
    std::strncpy(head.kind, kind(), sizeof(head.kind) - 1);
    std::memcpy(data, &head, sizeof(head));
    std::memcpy(data + sizeof(head), s.carry.data(), n_carry);
    if (saves_memory(partial) && !cells_.get_state(seq, partial, data + sizeof(head) + n_carry, head.n_memory)) {
        return "the draft context wrote less than it announced";
    }
    return "";
}

std::string driver::set_state(llama_seq_id seq, bool partial, const uint8_t * data, size_t size) {
    const auto refuse = [&](const std::string & why) {
        truncate(seq, 0);
        return why;
    };
    header head;
    if (size < sizeof(head)) {
        return refuse("a drafter's state of " + std::to_string(size) + " bytes is cut short");
    }
    std::memcpy(&head, data, sizeof(head));
    head.kind[sizeof(head.kind) - 1] = '\0';
    if (head.version != VERSION) {
        return refuse("the drafter's state has format " + std::to_string(head.version) + ", this build reads " + std::to_string(VERSION));
    }
    if (std::strcmp(head.kind, kind()) != 0) {
        return refuse("the state is that of drafter `" + std::string(head.kind) + "`, this one is `" + kind() + "`");
    }
    sequence & s = at(seq);
    if (head.width != s.carry.size()) {
        return refuse("the state's rows are " + std::to_string(head.width) + " wide, the drafter's " + std::to_string(s.carry.size()));
    }
    if (head.partial != (partial ? 1u : 0u)) {
        return refuse(partial ? "the state is whole, a partial one was expected" : "the state is partial, a whole one was expected");
    }
    const size_t n_carry = head.carry_pos >= 0 ? s.carry.size() * sizeof(float) : 0;
    if (head.end < 0 || head.carry_pos < -1 || size - sizeof(head) < n_carry || size - sizeof(head) - n_carry != head.n_memory) {
        return refuse("a drafter's state of " + std::to_string(size) + " bytes is damaged: its parts have other sizes");
    }
    if (settings_.deferred && cells_.own()) {
        if (!partial) {
            truncate(seq, 0);
        } else if (!cells_.cuts()) {
            flush({ seq });
            s.rows.clear();
        } else {
            truncate(seq, head.end);
        }
        // Upstream takes the bytes of an empty sequence for a failure.
        if (saves_memory(partial) && head.end > 0 && !cells_.set_state(seq, partial, data + sizeof(head) + n_carry, head.n_memory)) {
            return refuse("the draft context does not take the state of " + std::to_string(head.n_memory) + " bytes: it has another KV type, or no room for it");
        }
        if (partial && !cells_.cuts()) {
            cells_.cut(seq, head.end);
        }
    } else {
        truncate(seq, 0);
    }
    s.carry_pos = head.carry_pos;
    std::memcpy(s.carry.data(), data + sizeof(head), n_carry);
    return "";
}

} // namespace pyllm::draft
