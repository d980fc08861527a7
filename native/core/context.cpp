#include "core/context.h"

#include "core/batch.h"
#include "core/error.h"
#include "core/library.h"
#include "core/model.h"
#include "draft/context_size.h"
#include "draft/layer_input.h"
#include "draft/tentative.h"

#include "llama-ext.h"

#include <algorithm>

namespace pyllm {

context_state::~context_state() {
    if (ctx != nullptr) {
        llama_detach_threadpool(ctx);
        llama_free(ctx);
    }
}

llama_memory_t context_state::memory() const {
    llama_memory_t memory = llama_get_memory(ctx);
    require(memory != nullptr, PYLLM_UNSUPPORTED, "this model keeps no memory between decodes");
    return memory;
}

void context_state::check_seq(int32_t seq) const {
    const int32_t n = (int32_t) llama_n_seq_max(ctx);
    require(seq >= 0 && seq < n, PYLLM_INVALID_ARGUMENT, format("sequence %d is not in [0, %d)", seq, n), "create the context with a larger n_seq_max");
}

void context_state::check_output(int32_t index) const {
    require(index >= 0 && index < (int32_t) outputs.size(), PYLLM_INVALID_ARGUMENT,
            format("batch index %d is not in [0, %zu) of the last decode", index, outputs.size()));
    require(outputs[(size_t) index], PYLLM_INVALID_ARGUMENT, format("batch entry %d was decoded without logits", index),
            "add it to the batch with PYLLM_LOGITS_LAST or PYLLM_LOGITS_ALL");
}

void enable_layer_input(context_state & state, int32_t layer, bool enable) {
    const int32_t n_layer = llama_model_n_layer(state.model.get());
    require(layer >= 0 && layer <= n_layer, PYLLM_INVALID_ARGUMENT, format("layer %d is not in [0, %d]", layer, n_layer));
    state.layer_inputs.resize((size_t) n_layer + 1, false);
    if (state.layer_inputs[(size_t) layer] == enable) {
        return;
    }
    llama_set_embeddings_layer_inp(state.ctx, (uint32_t) layer, enable);
    if (enable) {
        try {
            probe_layer_inputs(state.ctx);
        } catch (const std::exception & e) {
            llama_set_embeddings_layer_inp(state.ctx, (uint32_t) layer, false);
            throw failure(PYLLM_UNSUPPORTED, format("architecture `%s` cannot hand out its layer inputs: %s", model_architecture(state.model.get()).c_str(), e.what()),
                          "use a drafter that needs no taps (draft-mtp, ngram-*)");
        }
    }
    state.layer_inputs[(size_t) layer] = enable;
    state.n_rows = 0;
    state.outputs.clear();
}

namespace {

int32_t find_rollback(llama_context * ctx) {
    switch (common_context_can_seq_rm(ctx)) {
        case COMMON_CONTEXT_SEQ_RM_TYPE_PART: return PYLLM_ROLLBACK_ANY;
        case COMMON_CONTEXT_SEQ_RM_TYPE_RS:   return PYLLM_ROLLBACK_BOUNDED;
        case COMMON_CONTEXT_SEQ_RM_TYPE_FULL: return PYLLM_ROLLBACK_CHECKPOINT;
        default:                              return PYLLM_ROLLBACK_NONE;
    }
}

ggml_type kv_type(int32_t type, const char * which) {
    require(type >= 0 && type < GGML_TYPE_COUNT && pyllm_kv_type_from_name(ggml_type_name((ggml_type) type)) == type, PYLLM_INVALID_ARGUMENT,
            format("%s %d is not a KV cache type", which, type), "use f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl");
    return (ggml_type) type;
}

} // namespace
} // namespace pyllm

using namespace pyllm;

extern "C" {

pyllm_context_params pyllm_context_params_default(void) {
    pyllm_context_params params = {};
    params.n_batch     = 2048;
    params.n_ubatch    = 512;
    params.n_seq_max   = 1;
    params.type_k      = GGML_TYPE_F16;
    params.type_v      = GGML_TYPE_F16;
    params.flash_attn  = -1;
    params.offload_kqv = true;
    return params;
}

pyllm_status pyllm_context_create(pyllm_model * model, const pyllm_context_params * params, pyllm_context ** out) {
    return guard([&] {
        not_null(model, "model");
        not_null(params, "params");
        *not_null(out, "out") = nullptr;
        require(!model->vocab_only, PYLLM_UNSUPPORTED, format("`%s` was loaded with its vocabulary only", model->path.c_str()), "load it without vocab_only");
        // Their graphs read the context of a target; upstream asserts that there is one.
        const std::string arch = model_architecture(model->model.get());
        require(arch != "dflash" && arch != "eagle3" && arch != "gemma4-assistant", PYLLM_UNSUPPORTED,
                format("`%s` (architecture `%s`) is a drafter and cannot run without its target", model->path.c_str(), arch.c_str()), "load the target, and give this file as the draft model");
        require(params->n_seq_max >= 1 && params->n_seq_max <= llama_max_parallel_sequences(), PYLLM_INVALID_ARGUMENT,
                format("n_seq_max %u is not in [1, %zu]", params->n_seq_max, llama_max_parallel_sequences()));
        require(params->n_batch >= 1 && params->n_batch <= (1u << 24), PYLLM_INVALID_ARGUMENT, format("n_batch %u is not in [1, 16777216]", params->n_batch));
        require(params->n_ubatch >= 1 && params->n_ubatch <= (1u << 24), PYLLM_INVALID_ARGUMENT, format("n_ubatch %u is not in [1, 16777216]", params->n_ubatch));
        require(params->n_ctx <= (1u << 30), PYLLM_INVALID_ARGUMENT, format("n_ctx %u is not in [0, 2^30]", params->n_ctx));
        require(params->n_threads >= 0 && params->n_threads <= GGML_MAX_N_THREADS && params->n_threads_batch >= 0 && params->n_threads_batch <= GGML_MAX_N_THREADS,
                PYLLM_INVALID_ARGUMENT, format("n_threads %d / %d is not in [0, %d]", params->n_threads, params->n_threads_batch, GGML_MAX_N_THREADS));
        require(params->flash_attn >= -1 && params->flash_attn <= 1, PYLLM_INVALID_ARGUMENT, format("flash_attn %d is not -1 (auto), 0 (off) or 1 (on)", params->flash_attn));
        const uint32_t n_ctx = params->n_ctx != 0 ? params->n_ctx : (uint32_t) llama_model_n_ctx_train(model->model.get());
        // A sequence needs two cells at least: upstream probes with two tokens.
        require(n_ctx / params->n_seq_max >= 2 || params->kv_unified, PYLLM_INVALID_ARGUMENT,
                format("n_ctx %u leaves %u cells for each of %u sequences; at least 2 are needed", n_ctx, n_ctx / params->n_seq_max, params->n_seq_max),
                "raise n_ctx, lower n_seq_max, or share the cells with kv_unified");

        auto state = std::make_shared<context_state>();
        state->model           = model->model;
        state->has_mtp         = model->has_mtp;
        state->tracing         = params->trace;
        state->kv_unified      = params->kv_unified;
        state->type_k          = kv_type(params->type_k, "type_k");
        state->type_v          = kv_type(params->type_v, "type_v");
        state->n_threads       = params->n_threads != 0 ? params->n_threads : pyllm_default_threads();
        state->n_threads_batch = params->n_threads_batch != 0 ? params->n_threads_batch : state->n_threads;

        llama_context_params cparams = llama_context_default_params();
        cparams.n_ctx           = params->n_ctx;
        cparams.n_batch         = params->n_batch;
        cparams.n_ubatch        = std::min(params->n_ubatch, params->n_batch);
        cparams.n_seq_max       = params->n_seq_max;
        cparams.n_rs_seq        = params->n_rs_seq;
        cparams.n_outputs_max   = params->n_outputs_max;
        cparams.n_threads       = state->n_threads;
        cparams.n_threads_batch = state->n_threads_batch;
        cparams.flash_attn_type = (llama_flash_attn_type) params->flash_attn;
        cparams.type_k          = state->type_k;
        cparams.type_v          = state->type_v;
        cparams.kv_unified      = params->kv_unified;
        cparams.swa_full        = params->swa_full;
        cparams.offload_kqv     = params->offload_kqv;
        cparams.no_perf         = true;
        cparams.abort_callback  = [](void * user) {
            return static_cast<std::atomic<bool> *>(user)->load(std::memory_order_relaxed);
        };
        cparams.abort_callback_data = &state->cancelled;
        if (params->trace) {
            cparams.cb_eval           = trace_log::on_eval;
            cparams.cb_eval_user_data = &state->trace;
        }
        if (params->n_rs_seq > 0) {
            size_rollback_context(cparams);
        }
        log_errors_clear();
        {
            const abort_is_exception caught;
            const tentative_tokens tentative(tentative_tokens::of(params->n_outputs_max, 0, params->n_seq_max));
            state->ctx = llama_init_from_model(model->model.get(), cparams);
        }
        if (state->ctx == nullptr) {
            const std::string why = log_errors();
            const bool memory = why.find("alloc") != std::string::npos;
            throw failure(memory ? PYLLM_OUT_OF_MEMORY : PYLLM_UNSUPPORTED, "the context could not be created: " + why,
                          memory ? "lower n_ctx, the number of sequences, n_ubatch, or the size of the KV type" : "change the setting that the message names");
        }
        common_params threads;
        threads.cpuparams.n_threads       = state->n_threads;
        threads.cpuparams_batch.n_threads = state->n_threads_batch;
        state->threadpools = std::make_unique<common_threadpools>();
        state->threadpools->init(state->ctx, threads);

        if (llama_get_memory(state->ctx) != nullptr && llama_get_causal_attn(state->ctx)) {
            state->rollback = find_rollback(state->ctx);
            state->trace.clear(); // the probe's nodes are not the caller's
        }
        *out = new pyllm_context{ std::move(state) };
    });
}

void pyllm_context_free(pyllm_context * context) { delete context; }

pyllm_status pyllm_context_get_info(pyllm_context * handle, pyllm_context_info * info) {
    return guard([&] {
        const context_state & state = *not_null(handle, "context")->state;
        *not_null(info, "info") = {};
        info->n_ctx      = llama_n_ctx(state.ctx);
        info->n_ctx_seq  = llama_n_ctx_seq(state.ctx);
        info->n_batch    = llama_n_batch(state.ctx);
        info->n_ubatch   = llama_n_ubatch(state.ctx);
        info->n_seq_max  = llama_n_seq_max(state.ctx);
        info->n_rs_seq   = llama_n_rs_seq(state.ctx);
        info->rollback   = state.rollback;
        info->can_shift  = llama_get_memory(state.ctx) != nullptr && llama_memory_can_shift(llama_get_memory(state.ctx));
        info->causal     = llama_get_causal_attn(state.ctx);
        info->kv_unified = state.kv_unified;
    });
}

void pyllm_context_cancel(pyllm_context * handle) {
    if (handle != nullptr) {
        handle->state->cancelled.store(true);
    }
}

pyllm_status pyllm_context_decode(pyllm_context * handle, pyllm_batch * batch) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        not_null(batch, "batch");
        require(batch->context.get() == &state, PYLLM_INVALID_ARGUMENT, "the batch belongs to another context");
        const int32_t n = batch->tokens.size();
        require(n > 0, PYLLM_INVALID_ARGUMENT, "the batch is empty");
        const int32_t n_batch  = (int32_t) llama_n_batch(state.ctx);
        const int32_t n_ubatch = (int32_t) llama_n_ubatch(state.ctx);
        require(n <= n_batch, PYLLM_LIMIT, format("the batch has %d tokens, n_batch is %d", n, n_batch), "split it, or raise n_batch");
        require(llama_get_causal_attn(state.ctx) || n <= n_ubatch, PYLLM_LIMIT,
                format("a batch of %d tokens without causal attention has to fit n_ubatch %d", n, n_ubatch), "raise n_ubatch");

        log_errors_clear();
        state.outputs.clear();
        state.n_rows = 0;
        const int32_t ret = llama_process(state.ctx, LLAMA_PROCESS_TYPE_DECODE, batch->tokens.get());
        if (state.cancelled.exchange(false) && ret == 2) {
            throw failure(PYLLM_CANCELLED, "the decode was cancelled");
        }
        switch (ret) {
            case 0: break;
            case 1:
                throw failure(PYLLM_CONTEXT_FULL, format("no free cells in the KV cache for %d more tokens (n_ctx %u)", n, llama_n_ctx(state.ctx)),
                              "raise n_ctx, use fewer slots, or end a request");
            case 2:  throw failure(PYLLM_CANCELLED, "the decode was cancelled");
            case -1: throw failure(PYLLM_INVALID_ARGUMENT, "upstream refused the batch: " + log_errors());
            default: throw failure(PYLLM_DECODE, format("the graph failed (%d): ", ret) + log_errors());
        }
        state.n_rows = n;
        for (const auto & token : batch->tokens.tokens) {
            state.outputs.push_back(token.output);
        }
    });
}

pyllm_status pyllm_context_get_logits(pyllm_context * handle, int32_t index, const float ** row, int32_t * n) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        not_null(row, "row");
        not_null(n, "n");
        state.check_output(index);
        *row = not_null(llama_get_logits_ith(state.ctx, index), "logits");
        *n   = llama_vocab_n_tokens(llama_model_get_vocab(state.model.get()));
    });
}

pyllm_status pyllm_context_enable_nextn(pyllm_context * handle, bool enable, bool masked) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        llama_set_embeddings_nextn(state.ctx, enable, masked);
        state.nextn = enable;
        state.nextn_masked = masked;
    });
}

pyllm_status pyllm_context_get_nextn(pyllm_context * handle, int32_t index, const float ** row, int32_t * n) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        not_null(row, "row");
        not_null(n, "n");
        require(state.nextn, PYLLM_INVALID_ARGUMENT, "hidden rows are not extracted", "call pyllm_context_enable_nextn before the decode");
        require(index >= 0 && index < state.n_rows, PYLLM_INVALID_ARGUMENT, format("batch index %d is not in [0, %d) of the last decode", index, state.n_rows));
        *row = llama_get_embeddings_nextn_ith(state.ctx, index);
        require(*row != nullptr, PYLLM_UNSUPPORTED, "this architecture exports no hidden rows");
        *n = llama_model_n_embd_out(state.model.get());
    });
}

pyllm_status pyllm_context_enable_layer_input(pyllm_context * handle, int32_t layer, bool enable) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        enable_layer_input(state, layer, enable);
    });
}

pyllm_status pyllm_context_get_tap(pyllm_context * handle, int32_t layer, bool * enabled) {
    return guard([&] {
        const context_state & state = *not_null(handle, "context")->state;
        require(layer >= -1, PYLLM_INVALID_ARGUMENT, format("layer %d is not -1 (hidden rows) or a layer", layer));
        *not_null(enabled, "enabled") = layer == -1 ? state.nextn : (size_t) layer < state.layer_inputs.size() && state.layer_inputs[(size_t) layer];
    });
}

pyllm_status pyllm_context_get_layer_input(pyllm_context * handle, int32_t layer, const float ** rows, int32_t * n_rows, int32_t * n) {
    return guard([&] {
        context_state & state = *not_null(handle, "context")->state;
        not_null(rows, "rows");
        not_null(n_rows, "n_rows");
        not_null(n, "n");
        require(layer >= 0 && layer < (int32_t) state.layer_inputs.size() && state.layer_inputs[(size_t) layer], PYLLM_INVALID_ARGUMENT,
                format("the input of layer %d is not extracted", layer), "call pyllm_context_enable_layer_input before the decode");
        require(state.n_rows > 0, PYLLM_INVALID_ARGUMENT, "nothing has been decoded since the layer input was enabled");
        *rows   = llama_get_embeddings_layer_inp(state.ctx, (uint32_t) layer);
        *n_rows = state.n_rows;
        *n      = llama_model_n_embd(state.model.get());
    });
}

} // extern "C"
