#include "draft/driver.h"

#include "draft/resting.h"

#include "route/control.h"

#include <algorithm>
#include <exception>

namespace pyllm::draft {

namespace {

// Failures in a row after which a sequence drafts no more.
constexpr int32_t MAX_FAILURES = 3;

// Rows of the last decode that are kept where nothing is injected: a cut needs one of them. More are never cut off by a verification.
constexpr int32_t MAX_TAIL = 1025;

} // namespace

driver::driver(const settings & config, const cells & memory, size_t stash_width, bool pairs)
    : settings_(config), cells_(memory), pairs_(pairs) {
    const auto n_tokens = [](const llama_context * ctx) { return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))); };
    n_vocab_ = std::min(n_tokens(config.ctx_tgt), n_tokens(config.ctx_dft));
    sequences_.resize(llama_n_seq_max(config.ctx_dft));
    for (sequence & s : sequences_) {
        s.rows = stash(stash_width);
    }
}

// ---- rows of the target

void driver::process(const common_batch & batch) {
    if (batch.size() == 0 || !takes(batch)) {
        return; // the gap shows in the positions of what comes next
    }
    std::vector<run> runs;
    for (int32_t i = 0; i < batch.size(); ++i) {
        const llama_seq_id seq = batch.tokens[(size_t) i].seq_id;
        if (seq < 0 || (size_t) seq >= sequences_.size()) {
            continue;
        }
        if (!runs.empty() && runs.back().seq == seq && runs.back().first + runs.back().n == i) {
            runs.back().n += 1;
        } else {
            runs.push_back({ seq, i, 1 });
        }
    }
    find_rows();
    std::vector<llama_seq_id> seqs;
    for (const run & rows : runs) {
        const bool again = std::find(seqs.begin(), seqs.end(), rows.seq) != seqs.end();
        const llama_pos begin = at(rows.seq).last_begin;
        if (!stash_run(batch, rows)) {
            continue;
        }
        if (again) {
            at(rows.seq).last_begin = begin;
        } else {
            seqs.push_back(rows.seq);
        }
    }
    size_t waiting = 0;
    for (const sequence & s : sequences_) {
        waiting += s.rows.waiting_bytes();
    }
    if (!settings_.deferred) {
        flush(seqs);
    } else if (waiting > settings_.stash_bytes) {
        flush();
    }
}

bool driver::stash_run(const common_batch & batch, const run & rows) {
    sequence & s = at(rows.seq);
    const llama_pos pos = batch.tokens[(size_t) rows.first].pos[0];
    if (pos == 0 && s.off) {
        truncate(rows.seq, 0); // another conversation
    }
    if (s.off) {
        return false;
    }
    const float * before = pairs_ ? row_at(s, pos - 1) : nullptr;
    if (before != nullptr) {
        before_.assign(before, before + s.carry.size());
        before = before_.data();
    }
    int32_t skip = 0;
    if (cells_.own()) {
        const llama_pos end = known_end(rows.seq);
        if (pos > end && end > 0 && !cells_.jumps()) {
            forget(rows.seq); // an empty memory may start at any position
        } else if (pos < end && pos == end - 1 && pos > 0 && pairs_ && before == nullptr && s.rows.n_waiting() == 0) {
            skip = 1; // what reusable() asked for: the cell is right, only the row is missing
        } else if (pos < end) {
            s.rows.truncate(pos);
            if (!cells_.cut(rows.seq, pos)) {
                forget(rows.seq);
            }
        }
        s.rows.drop_injected();
    } else {
        s.rows.clear();
        if (rows.n > MAX_TAIL) {
            skip = rows.n - MAX_TAIL;
        }
    }
    s.last_begin = pos;
    s.n_plain    = rows.n == 1 ? s.n_plain + 1 : 0;
    if (!stash_rows(batch, rows, skip, before)) {
        s.why = "the target handed out no rows for the drafter";
        stats_.n_failures += 1;
        forget(rows.seq);
        return false;
    }
    if (!cells_.own()) {
        s.rows.injected(s.rows.n_waiting());
    } else if (settings_.deferred && s.n_plain >= 2 * RESTING_ROWS) {
        rest(rows.seq);
    }
    return true;
}

// What a draft model reads is all it has, and takes no room: that stays.
void driver::rest(llama_seq_id seq) {
    stash & rows = at(seq).rows;
    if (rows.width() > 0 && rows.n_waiting() >= 2 * (size_t) RESTING_ROWS) {
        rows.drop_first(rows.size() - (size_t) RESTING_ROWS);
        cells_.clear(seq);
    }
}

const float * driver::row_at(const sequence & s, llama_pos pos) const {
    if (pos < 0 || !pairs_) {
        return nullptr;
    }
    return s.carry_pos == pos ? s.carry.data() : s.rows.find(pos + 1);
}

llama_pos driver::known_end(llama_seq_id seq) const { return at(seq).rows.n_waiting() > 0 ? at(seq).rows.end() : cells_.end(seq); }

void driver::forget(llama_seq_id seq) {
    cells_.clear(seq);
    at(seq).rows.clear();
}

void driver::truncate(llama_seq_id seq, llama_pos end) {
    sequence & s = at(seq);
    if (pairs_) {
        const float * row = row_at(s, end - 1);
        if (row != nullptr && row != s.carry.data()) {
            s.carry.assign(row, row + s.carry.size());
        }
        s.carry_pos = row != nullptr ? end - 1 : -1;
    }
    s.rows.truncate(end);
    if (settings_.deferred && !cells_.cut(seq, end)) {
        s.rows.clear();
    }
    if (end == 0) {
        s.off = false;
        s.n_failures = 0;
        s.why.clear();
    }
}

void driver::accept(llama_seq_id seq, int32_t n_rows, int32_t n_drafted) {
    stats_.n_accepted += (uint64_t) n_drafted;
    const sequence & s = at(seq);
    const llama_pos end = pairs_ ? s.carry_pos + 1 : s.rows.end();
    if (s.last_begin + n_rows < end) {
        truncate(seq, s.last_begin + n_rows);
    }
}

llama_pos driver::reusable(llama_seq_id seq, llama_pos end) const {
    return !pairs_ || end <= 0 || row_at(at(seq), end - 1) != nullptr ? end : end - 1;
}

void driver::begin(llama_seq_id seq) {
    at(seq).off = false;
    at(seq).n_failures = 0;
}

void driver::shift(llama_seq_id seq, llama_pos n_keep, llama_pos n_discard) {
    sequence & s = at(seq);
    if (settings_.deferred) {
        flush({ seq });
        cells_.shift(seq, n_keep, n_discard);
    }
    s.rows.clear();
    if (s.carry_pos >= n_keep) {
        s.carry_pos = s.carry_pos >= n_keep + n_discard ? s.carry_pos - n_discard : -1;
    }
}

void driver::copy(llama_seq_id from, llama_seq_id to, llama_pos end) {
    if (from == to) {
        return;
    }
    truncate(to, 0);
    const sequence & source = at(from);
    if (end < 0) {
        end = pairs_ ? source.carry_pos + 1 : known_end(from);
    }
    if (settings_.deferred) {
        flush({ from });
        cells_.copy(from, to, end);
    }
    const float * row = row_at(source, end - 1);
    if (row != nullptr) {
        at(to).carry.assign(row, row + source.carry.size());
        at(to).carry_pos = end - 1;
    }
}

// ---- into the draft memory

void driver::flush() {
    std::vector<llama_seq_id> seqs;
    for (size_t seq = 0; seq < sequences_.size(); ++seq) {
        seqs.push_back((llama_seq_id) seq);
    }
    flush(seqs);
}

void driver::flush(const std::vector<llama_seq_id> & seqs) {
    if (!cells_.own()) {
        return;
    }
    // Rows that would have to leave a small memory again before they are read are left out.
    const size_t most = (size_t) std::max(1, cells_.per_seq() / 2);
    for (const llama_seq_id seq : seqs) {
        stash & rows = at(seq).rows;
        if (rows.n_waiting() > most && cells_.end(seq) + (llama_pos) rows.n_waiting() > cells_.per_seq()) {
            rows.drop_first(rows.size() - most);
            cells_.clear(seq);
        }
    }
    while (true) {
        std::vector<part> parts;
        size_t room = (size_t) inject_limit();
        for (const llama_seq_id seq : seqs) {
            const stash & rows = at(seq).rows;
            const size_t n = std::min(room, rows.n_waiting());
            if (n > 0) {
                parts.push_back({ seq, rows.n_injected(), n });
                room -= n;
            }
        }
        if (parts.empty()) {
            return;
        }
        inject_or_fail(parts);
    }
}

void driver::inject_or_fail(const std::vector<part> & parts) {
    if (inject(parts)) {
        for (const part & rows : parts) {
            at(rows.seq).rows.injected(rows.n);
            stats_.n_injected += rows.n;
        }
        return;
    }
    for (const part & rows : parts) {
        cells_.cut(rows.seq, at(rows.seq).rows.pos(rows.first));
    }
    if (parts.size() == 1) {
        return fail(parts[0].seq, error_);
    }
    for (const part & rows : parts) {
        inject_or_fail({ rows });
    }
}

bool driver::decode(common_batch & batch) {
    const route::DraftPhase phase;
    if (n_failing_ > 0) {
        n_failing_ -= 1;
        error_ = "a decode of the draft context was made to fail";
        return false;
    }
    int32_t ret = 0;
    int32_t attempt = 0;
    do {
        stats_.n_decodes += 1;
        try {
            ret = llama_process(settings_.ctx_dft, LLAMA_PROCESS_TYPE_DECODE, batch.get());
        } catch (const std::exception & e) {
            error_ = e.what();
            return false;
        }
    } while (ret == 1 && cells_.drop_old(attempt++));
    if (ret != 0) {
        error_ = ret == 1 ? "the draft memory of " + std::to_string(cells_.per_seq()) + " cells has no room for " + std::to_string(batch.size()) + " tokens"
                          : "a decode of the draft context failed (" + std::to_string(ret) + ")";
    }
    return ret == 0;
}

void driver::fail(llama_seq_id seq, const std::string & why) {
    sequence & s = at(seq);
    stats_.n_failures += 1;
    s.why = why;
    s.n_failures += 1;
    s.off = s.n_failures >= MAX_FAILURES;
    forget(seq);
}

void driver::turn_off(llama_seq_id seq, const std::string & why) {
    at(seq).n_failures = MAX_FAILURES - 1;
    fail(seq, why);
}

// ---- drafts

void driver::draft(std::vector<request> & requests) {
    std::vector<request *> group;
    for (request & r : requests) {
        r.n_tokens = 0;
        if (r.n_max > 0 && ready(r)) {
            at(r.seq).n_plain = 0;
            group.push_back(&r);
        }
    }
    if (group.empty()) {
        return;
    }
    attempt(group);
    for (request * r : group) {
        if (settings_.deferred) {
            cells_.cut(r->seq, r->pos); // what drafting has written; accepted tokens come again, from the target's rows
        }
        r->n_tokens = r->n_tokens < settings_.n_min ? 0 : r->n_tokens;
        stats_.n_drafts  += r->n_tokens > 0;
        stats_.n_drafted += (uint64_t) r->n_tokens;
    }
}

// The sequence holds exactly what stands before pos, as far as it can.
bool driver::ready(request & r) {
    sequence & s = at(r.seq);
    if (s.off || r.last < 0 || r.last >= n_vocab_) {
        return false;
    }
    if (!cells_.own()) {
        if (cells_.end(r.seq) != r.pos) {
            s.why = "the target holds " + std::to_string(cells_.end(r.seq)) + " positions, the draft starts at " + std::to_string(r.pos);
            stats_.n_failures += 1;
            return false;
        }
        return true;
    }
    const llama_pos end = known_end(r.seq);
    if (end > r.pos) {
        s.rows.truncate(r.pos);
        if (!cells_.cut(r.seq, r.pos)) {
            forget(r.seq);
        }
    } else if (end < r.pos && end > 0 && !cells_.jumps()) {
        forget(r.seq);
    }
    return true;
}

void driver::attempt(const std::vector<request *> & group) {
    if (draft_group(group)) {
        for (const request * r : group) {
            at(r->seq).n_failures = at(r->seq).off ? at(r->seq).n_failures : 0;
        }
        return;
    }
    for (request * r : group) {
        r->n_tokens = 0;
        const stash & rows = at(r->seq).rows;
        cells_.cut(r->seq, rows.n_waiting() > 0 ? rows.pos(rows.n_injected()) : r->pos);
    }
    if (group.size() == 1) {
        return fail(group[0]->seq, error_);
    }
    for (request * r : group) {
        attempt({ r });
    }
}

bool driver::take(request & r, int32_t index) {
    candidates found;
    const std::string wrong = read_candidates(settings_.ctx_dft, index, n_vocab_, found);
    if (!wrong.empty()) {
        r.n_tokens = 0;
        turn_off(r.seq, wrong);
        return false;
    }
    int32_t chosen = 0;
    return take(r, found, confidence(found), chosen);
}

bool driver::take(request & r, const candidates & found, float certainty, int32_t & chosen) {
    if (certainty < (r.p_min < 0.0f ? settings_.p_min : r.p_min)) {
        return false;
    }
    const size_t place = (size_t) r.n_tokens * PYLLM_DRAFT_CANDIDATES;
    chosen = choose(found, r.temperature, r.seed, r.pos + 1 + r.n_tokens, r.q_ids != nullptr ? r.q_ids + place : nullptr,
                    r.q_probs != nullptr ? r.q_probs + place : nullptr);
    r.tokens[r.n_tokens++] = found.ids[chosen];
    return true;
}

} // namespace pyllm::draft
