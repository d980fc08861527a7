#include "core/trace.h"

#include "core/context.h"
#include "core/error.h"
#include "route/node.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

namespace pyllm {

namespace {

void describe(const ggml_tensor * t, int64_t * ne, uint64_t * nb) {
    for (int i = 0; i < 4; ++i) {
        ne[i] = t != nullptr ? t->ne[i] : 0;
        nb[i] = t != nullptr ? (uint64_t) t->nb[i] : 0;
    }
}

// Attention without a fused op is soft_max over the product of K and Q; other uses of soft_max (experts) have another source.
bool is_soft_max_attention(const ggml_tensor * node) {
    return node->op == GGML_OP_SOFT_MAX && node->src[0] != nullptr && node->src[0]->op == GGML_OP_MUL_MAT;
}

} // namespace

bool trace_log::on_eval(ggml_tensor * node, bool ask, void * user) {
    const bool attention = node->op == GGML_OP_FLASH_ATTN_EXT || is_soft_max_attention(node);
    if (ask) {
        return attention;
    }
    if (attention) {
        static_cast<trace_log *>(user)->add(node);
    }
    return true;
}

void trace_log::add(const ggml_tensor * node) {
    pyllm_attention_node out;
    std::memset(&out, 0, sizeof(out)); // padding too: the bytes are the key
    copy_text(node->name, out.name, sizeof(out.name), nullptr);
    if (node->buffer != nullptr) {
        ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(node->buffer));
        copy_text(dev != nullptr ? ggml_backend_dev_name(dev) : "CPU", out.device, sizeof(out.device), nullptr);
    }
    const ggml_tensor * q = nullptr;
    const ggml_tensor * k = nullptr;
    const ggml_tensor * v = nullptr;
    const ggml_tensor * mask = nullptr;
    float params[3] = {};
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        out.op = 1;
        q = node->src[0];
        k = node->src[1];
        v = node->src[2];
        mask = node->src[3];
        out.has_sinks = node->src[4] != nullptr;
        std::memcpy(params, node->op_params, sizeof(params));
    } else {
        out.op = 2;
        k = node->src[0]->src[0];
        q = node->src[0]->src[1];
        mask = node->src[1];
        out.has_sinks = node->src[2] != nullptr;
        std::memcpy(params, node->op_params, 2 * sizeof(float));
    }
    out.scale    = params[0];
    out.max_bias = params[1];
    out.softcap  = params[2];
    out.type_q = q != nullptr ? (int32_t) q->type : -1;
    out.type_k = k != nullptr ? (int32_t) k->type : -1;
    out.type_v = v != nullptr ? (int32_t) v->type : -1;
    describe(q, out.ne_q, out.nb_q);
    describe(k, out.ne_k, out.nb_k);
    describe(v, out.ne_v, out.nb_v);
    describe(mask, out.ne_mask, out.nb_mask);

    out.mask_align = route::alignment(mask);
    out.align      = std::min({ route::alignment(q), route::alignment(k), route::alignment(v) });
    if (k != nullptr && v != nullptr) {
        out.is_view  = route::is_view(k, v);
        out.is_dense = ggml_is_contiguously_allocated(k) && ggml_is_contiguously_allocated(v);
        out.n_kv_max = node->op_params[4];
    }

    const std::string key(reinterpret_cast<const char *>(&out), sizeof(out));
    const auto found = index.find(key);
    if (found != index.end()) {
        list[found->second].n_calls += 1;
        return;
    }
    index.emplace(key, list.size());
    out.n_calls = 1;
    list.push_back(out);
}

void trace_log::clear() {
    list.clear();
    index.clear();
}

} // namespace pyllm

using namespace pyllm;

extern "C" {

int32_t pyllm_trace_count(const pyllm_context * handle) { return handle == nullptr ? 0 : (int32_t) handle->state->trace.nodes().size(); }

pyllm_status pyllm_trace_get(const pyllm_context * handle, int32_t index, pyllm_attention_node * node) {
    return guard([&] {
        const auto & nodes = not_null(handle, "context")->state->trace.nodes();
        require(handle->state->tracing, PYLLM_UNSUPPORTED, "this context records no trace", "create it with trace = true");
        require(index >= 0 && index < (int32_t) nodes.size(), PYLLM_INVALID_ARGUMENT, format("node index %d is not in [0, %zu)", index, nodes.size()));
        *not_null(node, "node") = nodes[(size_t) index];
    });
}

void pyllm_trace_clear(pyllm_context * handle) {
    if (handle != nullptr) {
        handle->state->trace.clear();
    }
}

} // extern "C"
