#include "draft/steps.h"

#include "../src/llama-ext.h" // hidden rows, heads

#include <algorithm>
#include <stdexcept>

namespace pyllm::draft {

namespace {

// Rows of a first step with all that waited. Many graphs compute the hidden rows of all of them, and all are copied then.
constexpr size_t MAX_TOGETHER = 256;

size_t row_width(const settings & config, step_kind kind) { return kind == step_kind::model ? 0 : (size_t) llama_model_n_embd_out(llama_get_model(config.ctx_dft)); }

cells make_cells(const settings & config, step_kind kind) {
    const llama_model * model = llama_get_model(config.ctx_dft);
    // The prediction heads of a recurrent model are attention layers.
    return cells(config.ctx_dft, kind != step_kind::shared, kind != step_kind::model || !(llama_model_is_recurrent(model) || llama_model_is_hybrid(model)));
}

settings within_heads(settings config, step_kind kind) {
    if (kind == step_kind::chained) {
        config.n_max = std::min(config.n_max, (int32_t) llama_model_n_layer_nextn(llama_get_model(config.ctx_dft)));
        config.n_min = std::min(config.n_min, config.n_max);
    }
    return config;
}

} // namespace

steps::steps(const settings & config, step_kind kind)
    : driver(within_heads(config, kind), make_cells(config, kind), row_width(config, kind), kind != step_kind::model), kind_(kind), width_(row_width(config, kind)),
      batch_(config.ctx_dft), samplers_(config.ctx_dft, (int32_t) llama_n_seq_max(config.ctx_dft), config.device_sampling), zeros_(width_, 0.0f) {
    if (width_ == 0) {
        return;
    }
    if (llama_model_n_embd_out(llama_get_model(config.ctx_tgt)) != (int32_t) width_) {
        throw std::runtime_error("the drafter reads rows of width " + std::to_string(width_) + ", the target's are " +
                                 std::to_string(llama_model_n_embd_out(llama_get_model(config.ctx_tgt))) + " wide");
    }
    llama_set_embeddings_nextn(config.ctx_tgt, true, /*masked*/ false);
    llama_set_embeddings_nextn(config.ctx_dft, true, /*masked*/ true);
    for (size_t seq = 0; seq < llama_n_seq_max(config.ctx_dft); ++seq) {
        at((llama_seq_id) seq).carry.assign(width_, 0.0f);
    }
}

const char * steps::kind() const {
    switch (kind_) {
        case step_kind::heads:   return "mtp";
        case step_kind::chained: return "mtp-chained";
        case step_kind::shared:  return "mtp-shared";
        default:                 return "model";
    }
}

int32_t steps::n_heads() const { return kind_ == step_kind::chained ? (int32_t) llama_model_n_layer_nextn(llama_get_model(settings_.ctx_dft)) : 1; }

void steps::select_head(int32_t head) {
    if (kind_ == step_kind::chained) {
        llama_set_nextn_layer_offset(settings_.ctx_dft, head);
    }
}

// Images have no token ids; what follows them starts behind a gap.
bool steps::takes(const common_batch & batch) const { return batch.has_token() && !batch.has_embd(); }

void steps::find_rows() { hidden_ = width_ > 0 ? llama_get_embeddings_nextn(settings_.ctx_tgt) : nullptr; }

bool steps::stash_rows(const common_batch & batch, const run & rows, int32_t skip, const float * before) {
    sequence & s = at(rows.seq);
    const float * row = before; // of the token before; the first of a conversation, and one behind a gap, gets zeros
    for (int32_t i = 0; i < rows.n; ++i) {
        const auto & token = batch.tokens[(size_t) (rows.first + i)];
        if (i >= skip) {
            s.rows.append(token.id, token.pos[0], row);
        }
        if (width_ > 0) {
            if (hidden_ == nullptr) {
                s.carry_pos = -1;
                return false;
            }
            row = hidden_ + (size_t) (rows.first + i) * width_;
        }
    }
    if (width_ > 0) {
        s.carry.assign(row, row + width_);
        s.carry_pos = batch.tokens[(size_t) (rows.first + rows.n - 1)].pos[0];
    }
    return true;
}

void steps::add(llama_token id, llama_pos pos, llama_seq_id seq, bool output, const float * row) {
    // Vocabularies of draft model and target may differ in padding at their end, which means nothing.
    const int32_t index = batch_.add(id < n_vocab_ ? id : 0, pos, seq, output);
    if (width_ > 0) {
        batch_.set_embd(index, { row, 1, width_ });
    }
}

bool steps::add_waiting(llama_seq_id seq) {
    const stash & rows = at(seq).rows;
    for (size_t i = rows.n_injected(); i < rows.size(); ++i) {
        add(rows.id(i), rows.pos(i), seq, false, rows.row(i));
    }
    return rows.n_waiting() > 0;
}

int32_t steps::inject_limit() const { return (int32_t) llama_n_batch(settings_.ctx_dft); }

bool steps::inject(const std::vector<part> & parts) {
    bool ok = true;
    for (int32_t head = 0; ok && head < n_heads(); ++head) {
        select_head(head);
        batch_.clear();
        for (const part & p : parts) {
            const stash & rows = at(p.seq).rows;
            if (head > 0) {
                cells_.cut(p.seq, rows.pos(p.first)); // the cells, not what other heads' layers hold of them
            }
            for (size_t i = p.first; i < p.first + p.n; ++i) {
                add(rows.id(i), rows.pos(i), p.seq, false, rows.row(i));
            }
        }
        stats_.n_inject_decodes += 1;
        ok = decode(batch_);
    }
    select_head(0);
    return ok;
}

// Whether the waiting rows go into the same decode as the first step.
bool steps::fits_with(const std::vector<request *> & group) const {
    size_t total = 0;
    for (const request * r : group) {
        const size_t n = at(r->seq).rows.n_waiting();
        if (n > (size_t) cells_.per_seq() / 2) {
            return false;
        }
        total += n + (kind_ == step_kind::chained ? (size_t) n_heads() : 1);
    }
    return cells_.cuts() && total <= std::min<size_t>(llama_n_batch(settings_.ctx_dft), MAX_TOGETHER);
}

bool steps::draft_group(const std::vector<request *> & group) {
    if (!fits_with(group)) {
        std::vector<llama_seq_id> seqs;
        for (const request * r : group) {
            seqs.push_back(r->seq);
        }
        flush(seqs);
    }
    std::vector<draft_state> states;
    for (request * r : group) {
        const float * row = row_at(at(r->seq), r->pos - 1);
        row = row != nullptr ? row : zeros_.data();
        states.push_back({ r, !at(r->seq).off, -1, std::vector<float>(row, row + width_) });
    }
    if (cells_.cuts() || !settings_.deferred) {
        return run_steps(states);
    }
    // Recurrent state cannot be cut back: it is saved, and comes back after the draft.
    std::vector<std::vector<uint8_t>> before;
    for (const request * r : group) {
        before.emplace_back(cells_.state_size(r->seq, true));
        cells_.get_state(r->seq, true, before.back().data(), before.back().size());
    }
    const bool ok = run_steps(states);
    for (size_t i = 0; i < group.size(); ++i) {
        if (cells_.end(group[i]->seq) > group[i]->pos) {
            cells_.set_state(group[i]->seq, true, before[i].data(), before[i].size());
            cells_.cut(group[i]->seq, group[i]->pos);
        }
    }
    return ok;
}

void steps::add_step(draft_state & s) {
    const request & r = *s.r;
    const int32_t   n = r.n_tokens;
    // A chained head sees the draft from its start: its own layer has no cells of it yet.
    for (int32_t i = kind_ == step_kind::chained ? 0 : n; i <= n; ++i) {
        const llama_pos pos = kind_ == step_kind::shared ? r.pos : r.pos + i;
        add(i == 0 ? r.last : r.tokens[i - 1], pos, r.seq, i == n, s.rows.data() + (size_t) (kind_ == step_kind::chained ? i : 0) * width_);
    }
    s.index = batch_.size() - 1;
}

bool steps::run_steps(std::vector<draft_state> & states) {
    const bool chained = kind_ == step_kind::chained;
    bool ok = true;
    for (int32_t step = 0; ok; ++step) {
        const bool catches_up = chained ? step < n_heads() : step == 0;
        bool injects = false;
        batch_.clear();
        for (draft_state & s : states) {
            const stash & rows = at(s.r->seq).rows;
            if (chained && step > 0) {
                cells_.cut(s.r->seq, rows.n_waiting() > 0 ? rows.pos(rows.n_injected()) : s.r->pos);
            }
            injects = (catches_up && add_waiting(s.r->seq)) || injects;
            if (s.drafting) {
                add_step(s);
            }
        }
        if (batch_.size() == 0) {
            break;
        }
        select_head(step);
        stats_.n_inject_decodes += injects;
        ok = decode(batch_);
        for (draft_state & s : states) {
            if (!ok) {
                break;
            }
            stash & rows = at(s.r->seq).rows;
            if (injects && (!chained || step == n_heads() - 1)) {
                stats_.n_injected += rows.n_waiting();
                rows.injected(rows.n_waiting());
            }
            if (!s.drafting) {
                continue;
            }
            s.drafting = take(*s.r, s.index) && s.r->n_tokens < std::min(s.r->n_max, settings_.n_max);
            if (s.drafting && width_ > 0) {
                const float * row = llama_get_embeddings_nextn_ith(settings_.ctx_dft, s.index);
                if (row == nullptr) {
                    s.drafting = false;
                } else if (chained) {
                    s.rows.insert(s.rows.end(), row, row + width_);
                } else {
                    s.rows.assign(row, row + width_);
                }
            }
        }
    }
    select_head(0);
    return ok;
}

} // namespace pyllm::draft
