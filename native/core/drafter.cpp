#include "core/batch.h"
#include "core/context.h"
#include "core/error.h"
#include "core/library.h"
#include "core/model.h"
#include "draft/context_size.h"
#include "draft/target_match.h"

#include "llama-ext.h"
#include "speculative.h"

#include <algorithm>

// Drafting for all sequences of one target, on top of upstream's common_speculative.
struct pyllm_drafter {
    std::shared_ptr<pyllm::context_state> target;
    std::shared_ptr<llama_model>          draft_model; // empty: inside the target's file, or none
    std::unique_ptr<common_threadpools>   threadpools;
    llama_context_ptr                     ctx;         // of the draft; empty for n-gram types
    common_speculative_ptr                spec;

    int32_t n_seq = 0;
    bool    shares_memory = false;
    bool    chained_heads = false;

    std::vector<llama_tokens> history; // per sequence: what the target's memory holds
    std::vector<llama_tokens> results;
    std::vector<bool>         healthy; // false: its draft memory is behind; no drafts until the sequence begins anew
    std::vector<int32_t>      n_last;  // tokens of the last draft, for accept
    pyllm_drafter_stats       stats = {};

    ~pyllm_drafter() {
        spec.reset(); // detaches its samplers from the contexts
        if (ctx) {
            llama_detach_threadpool(ctx.get());
        }
    }
};

using namespace pyllm;

namespace {

const common_speculative_type known_types[] = {
    COMMON_SPECULATIVE_TYPE_DRAFT_MTP,   COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH,   COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE,
    COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K, COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V, COMMON_SPECULATIVE_TYPE_NGRAM_MOD,
};

std::vector<common_speculative_type> parse_types(const char * text) {
    std::string known;
    for (const auto type : known_types) {
        known += (known.empty() ? "" : ", ") + common_speculative_type_to_str(type);
    }
    std::vector<common_speculative_type> types;
    std::string rest = text == nullptr ? "" : text;
    require(!rest.empty(), PYLLM_INVALID_ARGUMENT, "no drafter type is given", "choose from " + known);
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        const std::string name = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        const auto found = std::find_if(std::begin(known_types), std::end(known_types), [&](auto type) { return common_speculative_type_to_str(type) == name; });
        require(found != std::end(known_types), PYLLM_INVALID_ARGUMENT, format("no drafter type is named `%s`", name.c_str()), "choose from " + known);
        require(std::find(types.begin(), types.end(), *found) == types.end(), PYLLM_INVALID_ARGUMENT, format("drafter type `%s` is given twice", name.c_str()));
        types.push_back(*found);
    }
    return types;
}

bool contains(const std::vector<common_speculative_type> & types, common_speculative_type type) {
    return std::find(types.begin(), types.end(), type) != types.end();
}

// Switches on the taps that a DFlash drafter reads.
void enable_taps(const llama_model * model_dft, context_state & target) {
    require(model_block_size(model_dft) >= 2, PYLLM_MODEL_FORMAT, format("the DFlash drafter's block size is %d; at least 2 are needed", model_block_size(model_dft)));
    const int32_t * layers = llama_model_target_layer_ids(model_dft);
    for (uint32_t i = 0; i < llama_model_target_layer_ids_n(model_dft); ++i) {
        enable_layer_input(target, layers[i], true);
    }
}

void check_seq(const pyllm_drafter & drafter, int32_t seq) {
    require(seq >= 0 && seq < drafter.n_seq, PYLLM_INVALID_ARGUMENT, format("sequence %d is not in [0, %d)", seq, drafter.n_seq));
}

void check_tokens(const pyllm_drafter & drafter, const int32_t * tokens, int32_t n) {
    require(n >= 0 && (n == 0 || tokens != nullptr), PYLLM_INVALID_ARGUMENT, format("n_tokens %d is negative, or tokens is NULL", n));
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(drafter.target->model.get()));
    for (int32_t i = 0; i < n; ++i) {
        require(tokens[i] >= 0 && tokens[i] < n_vocab, PYLLM_INVALID_ARGUMENT, format("token %d at place %d is not in [0, %d)", tokens[i], i, n_vocab));
    }
}

llama_context_ptr create_context(llama_model * model, const context_state & target, const pyllm_drafter_params & params, bool mtp, int32_t n_max, int32_t n_threads) {
    llama_context_params cparams = llama_context_default_params();
    // As many tokens per sequence as the target: a draft's memory holds what the target's holds.
    cparams.n_ctx           = llama_n_ctx(target.ctx);
    cparams.n_seq_max       = llama_n_seq_max(target.ctx);
    cparams.n_batch         = llama_n_batch(target.ctx);
    cparams.n_ubatch        = llama_n_ubatch(target.ctx);
    cparams.n_rs_seq        = 0;
    cparams.ctx_type        = mtp ? LLAMA_CONTEXT_TYPE_MTP : LLAMA_CONTEXT_TYPE_DEFAULT;
    cparams.ctx_other       = target.ctx;
    cparams.kv_unified      = target.kv_unified;
    cparams.type_k          = (ggml_type) params.type_k;
    cparams.type_v          = (ggml_type) params.type_v;
    cparams.n_threads       = n_threads;
    cparams.n_threads_batch = n_threads;
    cparams.no_perf         = true;
    // One row per sequence and step; a block drafter reads all of its block at once.
    cparams.n_outputs_max         = cparams.n_seq_max;
    cparams.n_outputs_max_per_seq = mtp ? 1 : (uint32_t) n_max + 1;
    size_block_context(cparams, model, n_max, (int32_t) cparams.n_seq_max);
    log_errors_clear();
    const abort_is_exception caught;
    llama_context_ptr ctx(llama_init_from_model(model, cparams));
    require(ctx != nullptr, PYLLM_UNSUPPORTED, "the draft context could not be created: " + log_errors(), "use a smaller context or fewer slots, or run without this drafter");
    return ctx;
}

} // namespace

extern "C" {

pyllm_drafter_params pyllm_drafter_params_default(void) {
    pyllm_drafter_params params = {};
    params.type_k = GGML_TYPE_F16;
    params.type_v = GGML_TYPE_F16;
    return params;
}

pyllm_status pyllm_drafter_create(pyllm_context * target_handle, pyllm_model * draft_handle, const pyllm_drafter_params * params, pyllm_drafter ** out) {
    return guard([&] {
        const std::shared_ptr<context_state> target = not_null(target_handle, "target")->state;
        not_null(params, "params");
        *not_null(out, "out") = nullptr;
        const auto types = parse_types(params->types);
        const bool mtp    = contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_MTP);
        const bool dflash = contains(types, COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH);
        require(mtp || dflash || draft_handle == nullptr, PYLLM_INVALID_ARGUMENT, format("drafter type `%s` uses no draft model, but one is given", params->types),
                "leave the draft model out, or add draft-mtp or draft-dflash");
        require(target->rollback != PYLLM_ROLLBACK_NONE, PYLLM_UNSUPPORTED, "rejected tokens cannot be taken out of this model's memory");
        require(params->n_max <= 4096 && params->n_min <= 4096, PYLLM_INVALID_ARGUMENT, format("n_max %d or n_min %d is over 4096", params->n_max, params->n_min));
        require(params->p_min >= 0.0f && params->p_min <= 1.0f, PYLLM_INVALID_ARGUMENT, format("p_min %g is not in [0, 1]", (double) params->p_min));
        require(params->n_threads >= 0 && params->n_threads <= GGML_MAX_N_THREADS, PYLLM_INVALID_ARGUMENT, format("n_threads %d is not in [0, %d]", params->n_threads, GGML_MAX_N_THREADS));
        for (const int32_t value : { params->ngram_size_n, params->ngram_size_m, params->ngram_min_hits }) {
            require(value <= 1024, PYLLM_INVALID_ARGUMENT, format("n-gram size %d is over 1024", value));
        }
        for (const int32_t type : { params->type_k, params->type_v }) {
            require(type >= 0 && type < GGML_TYPE_COUNT && pyllm_kv_type_from_name(pyllm_kv_type_name(type)) == type, PYLLM_INVALID_ARGUMENT, format("%d is not a KV cache type", type));
        }

        auto drafter = std::make_unique<pyllm_drafter>();
        drafter->target = target;
        drafter->n_seq  = (int32_t) llama_n_seq_max(target->ctx);

        common_params_speculative spec;
        spec.types = types;
        if (params->n_max > 0) {
            spec.draft.n_max = params->n_max;
        } else if (dflash && draft_handle != nullptr) {
            spec.draft.n_max = std::max(1, model_block_size(draft_handle->model.get()) - 1);
        }
        spec.draft.n_min = std::max(0, params->n_min);
        spec.draft.p_min = params->p_min;
        for (common_params_speculative_ngram_map * map : { &spec.ngram_simple, &spec.ngram_map_k, &spec.ngram_map_k4v }) {
            map->size_n   = params->ngram_size_n > 0 ? (uint16_t) params->ngram_size_n : map->size_n;
            map->size_m   = params->ngram_size_m > 0 ? (uint16_t) params->ngram_size_m : map->size_m;
            map->min_hits = params->ngram_min_hits > 0 ? (uint16_t) params->ngram_min_hits : map->min_hits;
        }
        if (params->ngram_size_n > 0) {
            spec.ngram_mod.n_match = params->ngram_size_n;
        }
        if (params->ngram_size_m > 0) {
            spec.ngram_mod.n_max = params->ngram_size_m;
            spec.ngram_mod.n_min = std::min(spec.ngram_mod.n_min, params->ngram_size_m);
        }

        if (mtp || dflash) {
            const auto mismatch = find_target_mismatch(draft_handle != nullptr ? draft_handle->model.get() : nullptr, target->model.get(), types);
            require(mismatch.message.empty(), mismatch.unsupported ? PYLLM_UNSUPPORTED : PYLLM_INCOMPATIBLE, mismatch.message, mismatch.hint);
            require(!mtp || (draft_handle != nullptr ? draft_handle->has_mtp : target->has_mtp), PYLLM_INVALID_ARGUMENT, "the model's prediction heads were not loaded", "load it with load_mtp");
            if (dflash) {
                enable_taps(draft_handle->model.get(), *target);
            }
            if (draft_handle != nullptr) {
                drafter->draft_model = draft_handle->model;
            }
            llama_model * model = draft_handle != nullptr ? draft_handle->model.get() : target->model.get();
            const int32_t n_threads = params->n_threads != 0 ? params->n_threads : target->n_threads;
            drafter->ctx = create_context(model, *target, *params, mtp, spec.draft.n_max, n_threads);
            // A DFlash context has the target as its other context too, for embeddings and output head, but a memory of its own.
            drafter->shares_memory = mtp && llama_get_ctx_other(drafter->ctx.get()) == target->ctx;
            drafter->chained_heads = mtp && !drafter->shares_memory && llama_model_n_layer_nextn(model) > 1;
            common_params threads;
            threads.cpuparams.n_threads = threads.cpuparams_batch.n_threads = n_threads;
            drafter->threadpools = std::make_unique<common_threadpools>();
            drafter->threadpools->init(drafter->ctx.get(), threads);
            spec.draft.ctx_tgt = target->ctx;
            spec.draft.ctx_dft = drafter->ctx.get();
        }
        log_errors_clear();
        drafter->spec.reset(common_speculative_init(spec, (uint32_t) drafter->n_seq));
        require(drafter->spec != nullptr, PYLLM_UNSUPPORTED, "upstream made no drafter: " + log_errors());
        if (mtp) {
            target->nextn = true;
        }
        drafter->history.resize((size_t) drafter->n_seq);
        drafter->results.resize((size_t) drafter->n_seq);
        drafter->healthy.assign((size_t) drafter->n_seq, true);
        drafter->n_last.assign((size_t) drafter->n_seq, 0);
        *out = drafter.release();
    });
}

void pyllm_drafter_free(pyllm_drafter * drafter) { delete drafter; }

pyllm_status pyllm_drafter_get_info(pyllm_drafter * drafter, pyllm_drafter_info * info) {
    return guard([&] {
        not_null(drafter, "drafter");
        *not_null(info, "info") = {};
        info->n_max         = common_speculative_n_max(drafter->spec.get());
        info->n_seq         = drafter->n_seq;
        info->has_context   = drafter->ctx != nullptr;
        info->n_ubatch      = drafter->ctx ? (int32_t) llama_n_ubatch(drafter->ctx.get()) : 0;
        info->shares_memory = drafter->shares_memory;
        info->chained_heads = drafter->chained_heads;
        info->can_shift     = !drafter->ctx || llama_memory_can_shift(llama_get_memory(drafter->ctx.get()));
    });
}

pyllm_status pyllm_drafter_get_stats(const pyllm_drafter * drafter, pyllm_drafter_stats * stats) {
    return guard([&] { *not_null(stats, "stats") = not_null(drafter, "drafter")->stats; });
}

pyllm_status pyllm_drafter_process(pyllm_drafter * drafter, const pyllm_batch * batch) {
    return guard([&] {
        not_null(drafter, "drafter");
        not_null(batch, "batch");
        require(batch->context == drafter->target, PYLLM_INVALID_ARGUMENT, "the batch belongs to another context than the drafter's target");
        require(drafter->target->n_rows == batch->tokens.size() && batch->tokens.size() > 0, PYLLM_INVALID_ARGUMENT,
                format("the batch has %d tokens, the target's last decode had %d", batch->tokens.size(), drafter->target->n_rows), "decode the batch first");
        if (common_speculative_process(drafter->spec.get(), batch->tokens)) {
            return;
        }
        // Its draft memory has a gap now. Forget it: an empty one may start at any position.
        drafter->stats.n_failures += 1;
        for (const auto & token : batch->tokens.tokens) {
            if (drafter->healthy[(size_t) token.seq_id]) {
                drafter->healthy[(size_t) token.seq_id] = false;
                if (drafter->ctx && !drafter->shares_memory) {
                    llama_memory_seq_rm(llama_get_memory(drafter->ctx.get()), token.seq_id, -1, -1);
                }
            }
        }
    });
}

pyllm_status pyllm_drafter_begin(pyllm_drafter * drafter, int32_t seq, const int32_t * tokens, int32_t n_tokens) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        check_tokens(*drafter, tokens, n_tokens);
        drafter->history[(size_t) seq].assign(tokens, tokens + n_tokens);
        drafter->healthy[(size_t) seq] = true;
        drafter->n_last[(size_t) seq]  = 0;
        common_speculative_begin(drafter->spec.get(), seq, drafter->history[(size_t) seq]);
    });
}

pyllm_status pyllm_drafter_draft(pyllm_drafter * drafter, pyllm_draft_request * requests, int32_t n_requests) {
    return guard([&] {
        not_null(drafter, "drafter");
        require(n_requests >= 0 && (n_requests == 0 || requests != nullptr), PYLLM_INVALID_ARGUMENT, format("n_requests %d is negative, or requests is NULL", n_requests));
        std::vector<bool> seen((size_t) drafter->n_seq, false);
        for (int32_t i = 0; i < n_requests; ++i) {
            const pyllm_draft_request & request = requests[i];
            check_seq(*drafter, request.seq);
            check_tokens(*drafter, &request.last, 1);
            require(!seen[(size_t) request.seq], PYLLM_INVALID_ARGUMENT, format("sequence %d is asked for twice", request.seq));
            seen[(size_t) request.seq] = true;
            require(request.pos >= 0, PYLLM_INVALID_ARGUMENT, format("position %d is negative", request.pos));
            require(request.n_max >= 0 && (request.n_max == 0 || request.tokens != nullptr), PYLLM_INVALID_ARGUMENT, format("n_max %d is negative, or tokens is NULL", request.n_max));
        }
        for (int32_t i = 0; i < n_requests; ++i) {
            pyllm_draft_request & request = requests[i];
            request.n_tokens = 0;
            llama_tokens & result = drafter->results[(size_t) request.seq];
            result.clear();
            drafter->n_last[(size_t) request.seq] = 0;
            auto & dp = common_speculative_get_draft_params(drafter->spec.get(), request.seq);
            dp.drafting = request.n_max > 0 && drafter->healthy[(size_t) request.seq];
            dp.n_max    = request.n_max;
            dp.pos0     = request.pos;
            dp.id_last  = request.last;
            dp.prompt   = &drafter->history[(size_t) request.seq];
            dp.result   = &result;
        }
        common_speculative_draft(drafter->spec.get());
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(drafter->target->model.get()));
        for (int32_t i = 0; i < n_requests; ++i) {
            pyllm_draft_request & request = requests[i];
            const llama_tokens & result = drafter->results[(size_t) request.seq];
            if (drafter->ctx && request.n_max > 0) {
                // What drafting has written is taken back; accepted tokens are processed again from the target's rows.
                llama_memory_seq_rm(llama_get_memory(drafter->ctx.get()), request.seq, request.pos, -1);
            }
            int32_t n = std::min((int32_t) result.size(), request.n_max);
            for (int32_t j = 0; j < n; ++j) {
                if (result[(size_t) j] < 0 || result[(size_t) j] >= n_vocab) {
                    drafter->stats.n_failures += 1; // a drafter of NaN logits names no token
                    n = j;
                }
            }
            std::copy(result.begin(), result.begin() + n, request.tokens);
            request.n_tokens = n;
            drafter->n_last[(size_t) request.seq] = n;
            drafter->stats.n_drafts  += n > 0;
            drafter->stats.n_drafted += (uint64_t) n;
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
        drafter->history[(size_t) seq].insert(drafter->history[(size_t) seq].end(), tokens, tokens + n_tokens);
        if (n_last > 0) {
            common_speculative_accept(drafter->spec.get(), seq, (uint16_t) n_accepted);
            drafter->stats.n_accepted += (uint64_t) n_accepted;
            drafter->n_last[(size_t) seq] = 0;
        }
    });
}

pyllm_status pyllm_drafter_truncate(pyllm_drafter * drafter, int32_t seq, int32_t end) {
    return guard([&] {
        not_null(drafter, "drafter");
        check_seq(*drafter, seq);
        require(end >= -1, PYLLM_INVALID_ARGUMENT, format("end %d is not a position", end));
        drafter->n_last[(size_t) seq] = 0;
        if (end == -1) {
            return;
        }
        auto & history = drafter->history[(size_t) seq];
        history.resize(std::min(history.size(), (size_t) end));
        if (drafter->ctx && !drafter->shares_memory && !llama_memory_seq_rm(llama_get_memory(drafter->ctx.get()), seq, end == 0 ? -1 : end, -1)) {
            llama_memory_seq_rm(llama_get_memory(drafter->ctx.get()), seq, -1, -1);
            drafter->healthy[(size_t) seq] = false;
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
        if (drafter->ctx && !drafter->shares_memory) {
            llama_memory_t memory = llama_get_memory(drafter->ctx.get());
            if (llama_memory_can_shift(memory) && llama_memory_seq_rm(memory, seq, n_keep, n_keep + n_discard)) {
                llama_memory_seq_add(memory, seq, n_keep + n_discard, -1, -n_discard);
            } else {
                llama_memory_seq_rm(memory, seq, -1, -1);
                drafter->healthy[(size_t) seq] = false;
            }
        }
        // The n-gram indexes count from the start of the history, which has moved.
        common_speculative_begin(drafter->spec.get(), seq, history);
    });
}

} // extern "C"
