#include "core/batch.h"
#include "core/context.h"
#include "core/error.h"
#include "core/link.h"
#include "core/model.h"
#include "draft/resting.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

// A chain of drafters for all sequences of one target: each sequence gets the draft of the first that has one.
struct pyllm_drafter {
    std::shared_ptr<pyllm::context_state> target;
    std::vector<std::unique_ptr<pyllm::chain_link>> links;
    std::vector<std::string>  types;
    std::vector<llama_tokens> history; // by sequence: what the target's memory holds
    std::vector<int32_t>      n_last;  // tokens of the last draft, for accept
    std::vector<int32_t>      drafted_by; // link of the last draft, -1: none
    std::vector<pyllm::draft::request> requests;
    std::vector<int32_t>      n_followed; // tokens at the end of the history that follow() took over from the last decode
    bool resting = false; // rows of the target are not read

    int32_t n_seq() const { return (int32_t) history.size(); }

    void follow(const common_batch & batch) {
        for (int32_t i = 0; i < batch.size(); ++i) {
            const llama_seq_id seq = batch.tokens[(size_t) i].seq_id;
            if (seq >= 0 && seq < n_seq()) {
                history[(size_t) seq].push_back(batch.tokens[(size_t) i].id);
                n_followed[(size_t) seq] += 1;
            }
        }
    }

    // accept() says itself what stays of a decode.
    void unfollow(int32_t seq) {
        llama_tokens & tokens = history[(size_t) seq];
        tokens.resize(tokens.size() - std::min(tokens.size(), (size_t) std::exchange(n_followed[(size_t) seq], 0)));
    }
};

using namespace pyllm;

namespace {

// The chain's state: this, and the bytes of each link.
struct chain_header {
    char     magic[4];
    uint32_t version;
    uint32_t n_links;
    uint32_t partial;
};
constexpr char     MAGIC[4] = { 'P', 'Y', 'D', 'R' };
constexpr uint32_t VERSION  = 1;

void check_seq(const pyllm_drafter & drafter, int32_t seq) {
    require(seq >= 0 && seq < drafter.n_seq(), PYLLM_INVALID_ARGUMENT, format("sequence %d is not in [0, %d)", seq, drafter.n_seq()));
}

void check_tokens(const pyllm_drafter & drafter, const int32_t * tokens, int32_t n) {
    require(n >= 0 && (n == 0 || tokens != nullptr), PYLLM_INVALID_ARGUMENT, format("n_tokens %d is negative, or tokens is NULL", n));
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(drafter.target->model.get()));
    for (int32_t i = 0; i < n; ++i) {
        require(tokens[i] >= 0 && tokens[i] < n_vocab, PYLLM_INVALID_ARGUMENT, format("token %d at place %d is not in [0, %d)", tokens[i], i, n_vocab));
    }
}

void check_request(const pyllm_drafter & drafter, const pyllm_draft_request & request) {
    check_seq(drafter, request.seq);
    check_tokens(drafter, &request.last, 1);
    require(request.pos >= 0, PYLLM_INVALID_ARGUMENT, format("position %d is negative", request.pos));
    require(request.n_max >= 0 && (request.n_max == 0 || request.tokens != nullptr), PYLLM_INVALID_ARGUMENT, format("n_max %d is negative, or tokens is NULL", request.n_max));
    require(std::isfinite(request.temperature), PYLLM_INVALID_ARGUMENT, format("temperature %g is not a number", (double) request.temperature));
    require((request.q_ids == nullptr) == (request.q_probs == nullptr), PYLLM_INVALID_ARGUMENT, "one of q_ids and q_probs is NULL and the other is not");
    require(request.p_min <= 1.0f, PYLLM_INVALID_ARGUMENT, format("p_min %g is over 1, or not a number", (double) request.p_min));
    require(request.pos < INT32_MAX - request.n_max - 1, PYLLM_INVALID_ARGUMENT, format("position %d + n_max %d is over 2^31", request.pos, request.n_max));
}

bool to_partial(int32_t flags) {
    require(flags == PYLLM_STATE_WHOLE || flags == PYLLM_STATE_PARTIAL, PYLLM_INVALID_ARGUMENT, format("state flags %d are not 0 (whole) or 1 (partial)", flags));
    return flags == PYLLM_STATE_PARTIAL;
}

std::vector<uint64_t> link_sizes(pyllm_drafter & drafter, int32_t seq, bool partial) {
    std::vector<uint64_t> sizes;
    for (const auto & link : drafter.links) {
        sizes.push_back(link->state_size(seq, partial));
    }
    return sizes;
}

size_t total_size(const std::vector<uint64_t> & sizes) {
    size_t total = sizeof(chain_header) + sizes.size() * sizeof(uint64_t);
    for (const uint64_t size : sizes) {
        total += size;
    }
    return total;
}

void check_params(const pyllm_drafter_params & params) {
    require(params.n_max <= 4096 && params.n_min <= 4096, PYLLM_INVALID_ARGUMENT, format("n_max %d or n_min %d is over 4096", params.n_max, params.n_min));
    require(params.p_min >= 0.0f && params.p_min <= 1.0f, PYLLM_INVALID_ARGUMENT, format("p_min %g is not in [0, 1]", (double) params.p_min));
    require(params.n_threads >= 0 && params.n_threads <= GGML_MAX_N_THREADS, PYLLM_INVALID_ARGUMENT, format("n_threads %d is not in [0, %d]", params.n_threads, GGML_MAX_N_THREADS));
    require(params.n_ctx <= (1u << 30), PYLLM_INVALID_ARGUMENT, format("n_ctx %u is not in [0, 2^30]", params.n_ctx));
    require(params.device_sampling >= -1 && params.device_sampling <= 1, PYLLM_INVALID_ARGUMENT, format("device_sampling %d is not -1, 0 or 1", params.device_sampling));
    for (const int32_t value : { params.ngram_size_n, params.ngram_size_m, params.ngram_min_hits }) {
        require(value <= 1024, PYLLM_INVALID_ARGUMENT, format("n-gram size %d is over 1024", value));
    }
    for (const int32_t type : { params.type_k, params.type_v }) {
        require(type >= 0 && type < GGML_TYPE_COUNT && pyllm_kv_type_from_name(pyllm_kv_type_name(type)) == type, PYLLM_INVALID_ARGUMENT, format("%d is not a KV cache type", type));
    }
}

} // namespace

extern "C" {

pyllm_drafter_params pyllm_drafter_params_default(void) {
    pyllm_drafter_params params = {};
    params.type_k = GGML_TYPE_F16;
    params.type_v = GGML_TYPE_F16;
    params.device_sampling = -1;
    return params;
}

pyllm_status pyllm_drafter_create(pyllm_context * target, pyllm_drafter ** out) {
    return guard([&] {
        const std::shared_ptr<context_state> state = not_null(target, "target")->state;
        *not_null(out, "out") = nullptr;
        require(state->rollback != PYLLM_ROLLBACK_NONE, PYLLM_UNSUPPORTED, "rejected tokens cannot be taken out of this model's memory");
        auto drafter = std::make_unique<pyllm_drafter>();
        drafter->target = state;
        const size_t n_seq = llama_n_seq_max(state->ctx);
        drafter->history.resize(n_seq);
        drafter->n_last.assign(n_seq, 0);
        drafter->drafted_by.assign(n_seq, -1);
        drafter->n_followed.assign(n_seq, 0);
        *out = drafter.release();
    });
}

pyllm_status pyllm_drafter_add(pyllm_drafter * drafter, const char * type, pyllm_model * draft_model, const pyllm_drafter_params * params) {
    return guard([&] {
        not_null(drafter, "drafter");
        const std::string name = not_null(type, "type");
        check_params(*not_null(params, "params"));
        require(std::find(drafter->types.begin(), drafter->types.end(), name) == drafter->types.end(), PYLLM_INVALID_ARGUMENT, format("drafter type `%s` is given twice", name.c_str()));
        drafter->links.push_back(make_link(drafter->target, name, draft_model, *params));
        drafter->types.push_back(name);
    });
}

void pyllm_drafter_free(pyllm_drafter * drafter) {
    if (drafter != nullptr && drafter->resting) {
        rest_taps(drafter->target->ctx, false);
    }
    delete drafter;
}

pyllm_status pyllm_drafter_get_info(pyllm_drafter * drafter, pyllm_drafter_info * info) {
    return guard([&] {
        not_null(drafter, "drafter");
        *not_null(info, "info") = {};
        info->n_seq     = drafter->n_seq();
        info->n_links   = (int32_t) drafter->links.size();
        info->can_shift = true;
        for (const auto & link : drafter->links) {
            info->n_max      = std::max(info->n_max, link->n_max());
            info->needs_rows = info->needs_rows || link->needs_rows();
            info->can_shift  = info->can_shift && link->can_shift();
        }
    });
}

pyllm_status pyllm_drafter_get_link(pyllm_drafter * drafter, int32_t index, pyllm_drafter_link_info * info) {
    return guard([&] {
        not_null(drafter, "drafter");
        *not_null(info, "info") = {};
        require(index >= 0 && (size_t) index < drafter->links.size(), PYLLM_INVALID_ARGUMENT, format("link %d is not in [0, %zu)", index, drafter->links.size()));
        drafter->links[(size_t) index]->get_info(*info);
    });
}

pyllm_status pyllm_drafter_process(pyllm_drafter * drafter, const pyllm_batch * batch) {
    return guard([&] {
        not_null(drafter, "drafter");
        not_null(batch, "batch");
        require(batch->context == drafter->target, PYLLM_INVALID_ARGUMENT, "the batch belongs to another context than the drafter's target");
        require(drafter->target->n_rows == batch->tokens.size() && batch->tokens.size() > 0, PYLLM_INVALID_ARGUMENT,
                format("the batch has %d tokens, the target's last decode had %d", batch->tokens.size(), drafter->target->n_rows), "decode the batch first");
        std::fill(drafter->n_followed.begin(), drafter->n_followed.end(), 0);
        if (drafter->resting) {
            drafter->follow(batch->tokens);
            return; // the gap shows in the positions of what comes next
        }
        for (const auto & link : drafter->links) {
            link->check_taps();
        }
        for (const auto & link : drafter->links) {
            link->process(batch->tokens);
        }
    });
}

pyllm_status pyllm_drafter_rest(pyllm_drafter * drafter, bool rest) {
    return guard([&] {
        not_null(drafter, "drafter");
        if (drafter->resting != rest) {
            rest_taps(drafter->target->ctx, rest);
            drafter->resting = rest;
        }
    });
}

pyllm_status pyllm_drafter_begin(pyllm_drafter * drafter, int32_t seq, const int32_t * tokens, int32_t n_tokens) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        check_tokens(*drafter, tokens, n_tokens);
        drafter->history[(size_t) seq].assign(tokens, tokens + n_tokens);
        drafter->n_followed[(size_t) seq] = 0;
        drafter->n_last[(size_t) seq] = 0;
        drafter->drafted_by[(size_t) seq] = -1;
        for (const auto & link : drafter->links) {
            link->begin(seq, drafter->history[(size_t) seq]);
        }
    });
}

pyllm_status pyllm_drafter_draft(pyllm_drafter * drafter, pyllm_draft_request * requests, int32_t n_requests) {
    return guard([&] {
        not_null(drafter, "drafter");
        require(n_requests >= 0 && (n_requests == 0 || requests != nullptr), PYLLM_INVALID_ARGUMENT, format("n_requests %d is negative, or requests is NULL", n_requests));
        std::vector<bool> seen((size_t) drafter->n_seq(), false);
        for (int32_t i = 0; i < n_requests; ++i) {
            check_request(*drafter, requests[i]);
            require(!seen[(size_t) requests[i].seq], PYLLM_INVALID_ARGUMENT, format("sequence %d is asked for twice", requests[i].seq));
            seen[(size_t) requests[i].seq] = true;
        }
        std::vector<pyllm_draft_request *> open;
        for (int32_t i = 0; i < n_requests; ++i) {
            requests[i].n_tokens = 0;
            requests[i].link     = -1;
            drafter->n_last[(size_t) requests[i].seq] = 0;
            drafter->drafted_by[(size_t) requests[i].seq] = -1;
            if (requests[i].n_max > 0) {
                open.push_back(&requests[i]);
            }
        }
        for (size_t link = 0; link < drafter->links.size() && !open.empty(); ++link) {
            drafter->requests.clear();
            for (const pyllm_draft_request * r : open) {
                drafter->requests.push_back({ r->seq, r->last, r->pos, r->n_max, r->temperature, r->p_min, r->seed, r->tokens, r->q_ids, r->q_probs, 0 });
            }
            drafter->links[link]->draft(drafter->requests, drafter->history);
            std::vector<pyllm_draft_request *> left;
            for (size_t i = 0; i < open.size(); ++i) {
                const int32_t n = drafter->requests[i].n_tokens;
                if (n == 0) {
                    left.push_back(open[i]);
                    continue;
                }
                open[i]->n_tokens = n;
                open[i]->link     = (int32_t) link;
                drafter->n_last[(size_t) open[i]->seq] = n;
                drafter->drafted_by[(size_t) open[i]->seq] = (int32_t) link;
            }
            open = std::move(left);
        }
    });
}

pyllm_status pyllm_drafter_accept(pyllm_drafter * drafter, int32_t seq, int32_t n_accepted, const int32_t * tokens, int32_t n_tokens) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        check_tokens(*drafter, tokens, n_tokens);
        const int32_t n_last = drafter->n_last[(size_t) seq];
        require(n_accepted >= 0 && n_accepted <= n_last, PYLLM_INVALID_ARGUMENT, format("n_accepted %d is not in [0, %d], the length of the last draft", n_accepted, n_last));
        drafter->unfollow(seq);
        auto & history = drafter->history[(size_t) seq];
        history.insert(history.end(), tokens, tokens + n_tokens);
        for (size_t link = 0; link < drafter->links.size(); ++link) {
            drafter->links[link]->accept(seq, n_tokens > 0 ? n_tokens : 1 + n_accepted, drafter->drafted_by[(size_t) seq] == (int32_t) link ? n_accepted : -1);
        }
        drafter->n_last[(size_t) seq] = 0;
        drafter->drafted_by[(size_t) seq] = -1;
    });
}

pyllm_status pyllm_drafter_truncate(pyllm_drafter * drafter, int32_t seq, int32_t end) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        require(end >= 0, PYLLM_INVALID_ARGUMENT, format("end %d is not a position", end));
        drafter->n_last[(size_t) seq] = 0;
        drafter->drafted_by[(size_t) seq] = -1;
        drafter->n_followed[(size_t) seq] = 0;
        auto & history = drafter->history[(size_t) seq];
        history.resize(std::min(history.size(), (size_t) end));
        for (const auto & link : drafter->links) {
            link->truncate(seq, end);
        }
    });
}

pyllm_status pyllm_drafter_reusable(pyllm_drafter * drafter, int32_t seq, int32_t end, int32_t * out) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        require(end >= 0, PYLLM_INVALID_ARGUMENT, format("end %d is not a position", end));
        *not_null(out, "out") = end;
        for (const auto & link : drafter->links) {
            *out = std::min(*out, link->reusable(seq, end));
        }
    });
}

pyllm_status pyllm_drafter_shift(pyllm_drafter * drafter, int32_t seq, int32_t n_keep, int32_t n_discard) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        require(n_keep >= 0 && n_discard >= 0, PYLLM_INVALID_ARGUMENT, format("n_keep %d or n_discard %d is negative", n_keep, n_discard));
        auto & history = drafter->history[(size_t) seq];
        require((size_t) n_keep + (size_t) n_discard <= history.size(), PYLLM_INVALID_ARGUMENT,
                format("n_keep %d + n_discard %d is over the %zu tokens of sequence %d", n_keep, n_discard, history.size(), seq));
        history.erase(history.begin() + n_keep, history.begin() + n_keep + n_discard);
        drafter->n_last[(size_t) seq] = 0;
        drafter->drafted_by[(size_t) seq] = -1;
        drafter->n_followed[(size_t) seq] = 0;
        for (const auto & link : drafter->links) {
            link->shift(seq, n_keep, n_discard, history);
        }
    });
}

pyllm_status pyllm_drafter_copy(pyllm_drafter * drafter, int32_t from, int32_t to, int32_t end) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, from);
        check_seq(*drafter, to);
        require(end >= 0, PYLLM_INVALID_ARGUMENT, format("end %d is not a position", end));
        require(from != to, PYLLM_INVALID_ARGUMENT, format("sequence %d is to be copied to itself", from));
        const auto & source = drafter->history[(size_t) from];
        drafter->history[(size_t) to].assign(source.begin(), source.begin() + (ptrdiff_t) std::min(source.size(), (size_t) end));
        drafter->n_last[(size_t) to] = 0;
        drafter->drafted_by[(size_t) to] = -1;
        drafter->n_followed[(size_t) to] = 0;
        for (const auto & link : drafter->links) {
            link->copy(from, to, end);
        }
    });
}

pyllm_status pyllm_drafter_state_size(pyllm_drafter * drafter, int32_t seq, int32_t flags, size_t * size) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        *not_null(size, "size") = total_size(link_sizes(*drafter, seq, to_partial(flags)));
    });
}

pyllm_status pyllm_drafter_state_get(pyllm_drafter * drafter, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        not_null(data, "data");
        const bool partial = to_partial(flags);
        const auto sizes = link_sizes(*drafter, seq, partial);
        *not_null(size, "size") = total_size(sizes);
        require(*size <= capacity, PYLLM_LIMIT, format("the state has %zu bytes, the buffer %zu", *size, capacity));
        chain_header head = { {}, VERSION, (uint32_t) sizes.size(), partial };
        std::memcpy(head.magic, MAGIC, sizeof(MAGIC));
        std::memcpy(data, &head, sizeof(head));
        std::memcpy(data + sizeof(head), sizes.data(), sizes.size() * sizeof(uint64_t));
        size_t at = sizeof(head) + sizes.size() * sizeof(uint64_t);
        for (size_t link = 0; link < sizes.size(); ++link) {
            drafter->links[link]->get_state(seq, partial, data + at, sizes[link]);
            at += sizes[link];
        }
    });
}

pyllm_status pyllm_drafter_state_set(pyllm_drafter * drafter, int32_t seq, int32_t flags, const uint8_t * data, size_t size) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        not_null(data, "data");
        const bool partial = to_partial(flags);
        try {
            chain_header head;
            require(size >= sizeof(head), PYLLM_STATE, format("a drafter's state of %zu bytes is cut short", size));
            std::memcpy(&head, data, sizeof(head));
            require(std::memcmp(head.magic, MAGIC, sizeof(MAGIC)) == 0, PYLLM_STATE, "these bytes are not a drafter's state");
            require(head.version == VERSION, PYLLM_STATE, format("the drafter's state has format %u, this build reads %u", head.version, VERSION));
            require(head.partial == (partial ? 1u : 0u), PYLLM_STATE, partial ? "the state is whole, a partial one was expected" : "the state is partial, a whole one was expected");
            const size_t n = drafter->links.size();
            require(head.n_links == n, PYLLM_STATE, format("the state is that of %u drafters, there are %zu", head.n_links, n), "configure the drafters that it was saved with");
            require(size - sizeof(head) >= n * sizeof(uint64_t), PYLLM_STATE, format("a drafter's state of %zu bytes is cut short", size));
            std::vector<uint64_t> sizes(n);
            std::memcpy(sizes.data(), data + sizeof(head), n * sizeof(uint64_t));
            size_t at = sizeof(head) + n * sizeof(uint64_t);
            for (size_t link = 0; link < n; ++link) {
                require(sizes[link] <= size - at, PYLLM_STATE, format("a drafter's state of %zu bytes is cut short", size));
                at += sizes[link];
            }
            require(at == size, PYLLM_STATE, format("a drafter's state of %zu bytes has %zu more than its parts", size, size - at));
            at = sizeof(head) + n * sizeof(uint64_t);
            for (size_t link = 0; link < n; ++link) {
                drafter->links[link]->set_state(seq, partial, data + at, sizes[link]);
                at += sizes[link];
            }
        } catch (...) {
            for (const auto & link : drafter->links) {
                link->truncate(seq, 0); // half a state is none
            }
            throw;
        }
        drafter->n_last[(size_t) seq] = 0;
        drafter->drafted_by[(size_t) seq] = -1;
    });
}

pyllm_status pyllm_drafter_fail(pyllm_drafter * drafter, int32_t n) {
    return guard([&] {
        not_null(drafter, "drafter");
        require(n >= 0, PYLLM_INVALID_ARGUMENT, format("n %d is negative", n));
        for (const auto & link : drafter->links) {
            link->fail_next(n);
        }
    });
}

pyllm_status pyllm_drafter_why(const pyllm_drafter * drafter, int32_t seq, char * text, size_t capacity, size_t * length) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        std::string why;
        for (size_t link = 0; link < drafter->links.size(); ++link) {
            const std::string reason = drafter->links[link]->why(seq);
            why += reason.empty() ? "" : (why.empty() ? "" : "; ") + drafter->types[link] + ": " + reason;
        }
        copy_text(why, text, capacity, length);
    });
}

} // extern "C"
