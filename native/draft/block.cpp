#include "draft/block.h"

#include "draft/context_size.h"
#include "draft/layer_input.h"

#include "../src/llama-ext.h" // layer inputs, lattice

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace pyllm::draft {

namespace {

settings within_block(settings config) {
    config.n_max = std::min(config.n_max, block_tokens(llama_get_model(config.ctx_dft), 1 << 20) - 2); // the first of the trained block is the last token itself
    config.n_min = std::min(config.n_min, config.n_max);
    return config;
}

// Whether the block's rows see those before them only.
bool is_causal(const llama_model * model) {
    char text[8] = {};
    return llama_model_meta_val_str(model, "dflash.attention.causal", text, sizeof(text)) >= 0 && std::strcmp(text, "true") == 0;
}

size_t feature_width(const settings & config) {
    return (size_t) llama_model_target_layer_ids_n(llama_get_model(config.ctx_dft)) * (size_t) llama_model_n_embd(llama_get_model(config.ctx_tgt));
}

} // namespace

block::block(const settings & config)
    : driver(within_block(config), cells(config.ctx_dft, true, true), feature_width(config), false), layers_(llama_model_target_layer_ids(llama_get_model(config.ctx_dft))),
      n_layers_(llama_model_target_layer_ids_n(llama_get_model(config.ctx_dft))), n_embd_tgt_((size_t) llama_model_n_embd(llama_get_model(config.ctx_tgt))),
      n_embd_dft_((size_t) llama_model_n_embd(llama_get_model(config.ctx_dft))), selector_top_k_(llama_model_dflash_selector_top_k(llama_get_model(config.ctx_dft))),
      mask_(llama_vocab_mask(llama_model_get_vocab(llama_get_model(config.ctx_dft)))), batch_(config.ctx_dft),
      samplers_(config.ctx_dft, (int32_t) llama_n_seq_max(config.ctx_dft), config.device_sampling && selector_top_k_ == 0) {
    if (n_layers_ == 0 || mask_ < 0 || settings_.n_max < 1) {
        throw std::runtime_error("the draft model is no DFlash drafter: it names no target layers, no mask token, or a block of less than 2 tokens");
    }
    if (inject_limit() < settings_.n_max + 1) {
        throw std::runtime_error("a block of " + std::to_string(settings_.n_max + 1) + " tokens has to fit the draft context's micro-batch of " + std::to_string(inject_limit()));
    }
    for (size_t i = 0; i < n_layers_; ++i) {
        llama_set_embeddings_layer_inp(config.ctx_tgt, (uint32_t) layers_[i], true);
    }
    probe_layer_inputs(config.ctx_tgt);
    // The lattice is handed out in hidden rows, of all rows; logits are not needed then.
    llama_set_embeddings_nextn(config.ctx_dft, true, /*masked*/ selector_top_k_ == 0);
    llama_set_causal_attn(config.ctx_dft, is_causal(llama_get_model(config.ctx_dft)));
}

bool block::takes(const common_batch & batch) const { return batch.has_token() != batch.has_embd(); }

void block::find_rows() {
    inputs_.resize(n_layers_);
    for (size_t k = 0; k < n_layers_; ++k) {
        inputs_[k] = llama_get_embeddings_layer_inp(settings_.ctx_tgt, (uint32_t) layers_[k]);
    }
}

bool block::stash_rows(const common_batch & batch, const run & rows, int32_t skip, const float *) {
    const auto & first = batch.tokens[(size_t) rows.first];
    const auto & last  = batch.tokens[(size_t) (rows.first + rows.n - 1)];
    // An image of an M-RoPE model has all its rows at one position; the memory can jump over it.
    if (batch.has_embd() && rows.n > 1 && first.pos[0] == last.pos[0]) {
        return true;
    }
    std::vector<const float *> inputs = inputs_;
    for (const float *& input : inputs) {
        input += (size_t) (rows.first + skip) * n_embd_tgt_;
    }
    for (int32_t i = skip; i < rows.n; ++i) {
        const auto & token = batch.tokens[(size_t) (rows.first + i)];
        at(rows.seq).rows.append(token.id, token.pos[0], inputs);
        for (const float *& input : inputs) {
            input += n_embd_tgt_;
        }
    }
    return true;
}

// Its attention is not causal: a decode cannot be cut into micro-batches.
int32_t block::inject_limit() const { return (int32_t) std::min(llama_n_ubatch(settings_.ctx_dft), llama_n_batch(settings_.ctx_dft)); }

bool block::inject(const std::vector<part> & parts) {
    batch_.clear();
    for (const part & p : parts) {
        const stash & rows = at(p.seq).rows;
        for (size_t i = p.first; i < p.first + p.n; ++i) {
            const llama_pos pos[4] = { rows.pos(i), rows.pos(i), rows.pos(i), 0 };
            batch_.add_embd({ rows.row(i), 1, rows.width() }, pos, p.seq, false);
        }
    }
    stats_.n_inject_decodes += 1;
    return decode(batch_);
}

int32_t block::length(const request & r) const { return std::min(r.n_max, settings_.n_max) + 1; }

bool block::draft_group(const std::vector<request *> & group) {
    std::vector<llama_seq_id> seqs;
    for (const request * r : group) {
        seqs.push_back(r->seq);
    }
    flush(seqs);
    std::vector<request *> left;
    for (request * r : group) {
        if (!at(r->seq).off) {
            left.push_back(r);
        }
    }
    // A block stays whole. Where every sequence has cells of its own, a decode is cut after the shortest one; and the graph of DFlash2 cuts its rows into
    // as many equal blocks as there are sequences. Equal lengths go together then.
    const bool equal = !cells_.unified() || selector_top_k_ > 0;
    std::stable_sort(left.begin(), left.end(), [&](const request * a, const request * b) { return equal && length(*a) < length(*b); });
    while (!left.empty()) {
        std::vector<request *> together;
        int32_t n_rows = 0;
        for (request * r : left) {
            if (n_rows + length(*r) > inject_limit() || (equal && length(*r) != length(*left[0]))) {
                break;
            }
            n_rows += length(*r);
            together.push_back(r);
        }
        left.erase(left.begin(), left.begin() + (ptrdiff_t) together.size());
        if (!decode_blocks(together)) {
            return false;
        }
    }
    return true;
}

bool block::decode_blocks(const std::vector<request *> & group) {
    batch_.clear();
    std::vector<int32_t> begins;
    for (const request * r : group) {
        begins.push_back(batch_.size());
        for (int32_t i = 0; i < length(*r); ++i) {
            batch_.add(i == 0 ? r->last : mask_, r->pos + i, r->seq, selector_top_k_ == 0); // the graph computes all rows, whichever are asked for
        }
    }
    if (!decode(batch_)) {
        return false;
    }
    for (size_t i = 0; i < group.size(); ++i) {
        if (selector_top_k_ > 0) {
            walk_lattice(*group[i], begins[i]);
        } else {
            read_block(*group[i], begins[i]);
        }
    }
    return true;
}

void block::read_block(request & r, int32_t begin) {
    for (int32_t i = 1; i < length(r) && take(r, begin + i); ++i) {
    }
}

// A row of the lattice: selector_top_k tokens, and for each of them as predecessor the scores of the tokens that may follow.
void block::walk_lattice(request & r, int32_t begin) {
    const float * lattice = llama_get_embeddings_nextn(settings_.ctx_dft);
    if (lattice == nullptr) {
        return turn_off(r.seq, "the drafter gave no lattice");
    }
    const int32_t k = selector_top_k_;
    int32_t predecessor = 0;
    for (int32_t i = 1; i < length(r); ++i) {
        const float * row    = lattice + (size_t) (begin + i) * n_embd_dft_;
        const float * scores = row + k + (size_t) predecessor * (size_t) k;
        candidates places; // in the row
        for (int32_t j = 0; j < k; ++j) {
            if (!std::isfinite(scores[j]) || !(row[j] >= 0.0f && row[j] < (float) n_vocab_)) {
                r.n_tokens = 0;
                return turn_off(r.seq, "the drafter's lattice is not finite, or names no token");
            }
            places.add(j, scores[j]);
        }
        float sum = 0.0f;
        for (int32_t j = 0; j < k; ++j) {
            sum += std::exp(scores[j] - places.logits[0]);
        }
        candidates found = places;
        for (int32_t j = 0; j < found.n; ++j) {
            found.ids[j] = (int32_t) row[places.ids[j]];
        }
        int32_t chosen = 0;
        if (!take(r, found, 1.0f / sum, chosen)) {
            return;
        }
        predecessor = places.ids[chosen];
    }
}

} // namespace pyllm::draft
