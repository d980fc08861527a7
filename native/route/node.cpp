#include "route/node.h"

#include "route/axes.h"

#include "ggml.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace pyllm::route {

static constexpr int64_t max_head_dim = 1024;

int32_t alignment(const ggml_tensor * tensor) {
    if (tensor == nullptr || ggml_is_quantized(tensor->type)) {
        return 16;
    }
    size_t bits = tensor->view_src != nullptr ? tensor->view_offs : 0;
    for (int i = 1; i < GGML_MAX_DIMS; ++i) {
        bits |= tensor->ne[i] > 1 ? tensor->nb[i] : 0;
    }
    return bits == 0 ? 16 : (int32_t) std::min<size_t>(16, bits & (~bits + 1));
}

bool is_view(const ggml_tensor * k, const ggml_tensor * v) {
    return v->view_src != nullptr && (v->view_src == k || (v->view_src == k->view_src && v->view_offs == k->view_offs));
}

static std::string shape(const ggml_tensor * t) {
    return "[" + std::to_string(t->ne[0]) + ", " + std::to_string(t->ne[1]) + ", " + std::to_string(t->ne[2]) + ", " + std::to_string(t->ne[3]) + "]";
}

std::string contradiction(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
    if (q == nullptr || k == nullptr || v == nullptr) {
        return "Q, K or V is missing";
    }
    const auto differ = [](const char * what, int64_t a, int64_t b) { return std::string(what) + ": " + std::to_string(a) + " and " + std::to_string(b); };
    for (const ggml_tensor * t : { q, k, v }) {
        if (std::any_of(t->ne, t->ne + GGML_MAX_DIMS, [](int64_t n) { return n < 1 || n > INT32_MAX; })) {
            return "a dimension outside [1, 2^31): " + shape(t);
        }
    }
    if (q->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32) {
        return std::string("Q is ") + ggml_type_name(q->type) + " and the result " + ggml_type_name(node->type) + ", not f32";
    }
    if (kv_type(ggml_type_name(k->type)) < 0 || kv_type(ggml_type_name(v->type)) < 0) {
        return std::string("K and V are ") + ggml_type_name(k->type) + " and " + ggml_type_name(v->type) + ", not types of a KV cache";
    }
    if (q->ne[0] != k->ne[0]) {
        return differ("head dims of Q and K differ", q->ne[0], k->ne[0]);
    }
    if (k->ne[0] > max_head_dim || v->ne[0] > max_head_dim) {
        return "head dims " + std::to_string(k->ne[0]) + "/" + std::to_string(v->ne[0]) + " are over " + std::to_string(max_head_dim);
    }
    if (k->ne[1] != v->ne[1]) {
        return differ("rows of K and V differ", k->ne[1], v->ne[1]);
    }
    if (k->ne[2] != v->ne[2]) {
        return differ("heads of K and V differ", k->ne[2], v->ne[2]);
    }
    if (q->ne[2] % k->ne[2] != 0) {
        return differ("query heads do not divide over KV heads", q->ne[2], k->ne[2]);
    }
    if (q->ne[3] != k->ne[3] || q->ne[3] != v->ne[3]) {
        return "streams of Q, K and V differ: " + std::to_string(q->ne[3]) + ", " + std::to_string(k->ne[3]) + ", " + std::to_string(v->ne[3]);
    }
    if (node->ne[0] != v->ne[0] || node->ne[1] != q->ne[2] || node->ne[2] != q->ne[1] || node->ne[3] != q->ne[3]) {
        return "the result is " + shape(node) + ", not [d_v, heads, rows, streams] of Q " + shape(q) + " and V " + shape(v);
    }
    if (sinks != nullptr && (sinks->type != GGML_TYPE_F32 || ggml_nelements(sinks) != q->ne[2])) {
        return std::string("sinks are ") + ggml_type_name(sinks->type) + " " + shape(sinks) + ", not one f32 for each of " + std::to_string(q->ne[2]) + " heads";
    }
    float max_bias;
    memcpy(&max_bias, (const float *) node->op_params + 1, sizeof(float));
    if (mask == nullptr) {
        return max_bias != 0.0f ? "ALiBi without a mask" : "";
    }
    if (mask->type != GGML_TYPE_F16) {
        return std::string("the mask is ") + ggml_type_name(mask->type) + ", not f16";
    }
    if (mask->ne[0] != k->ne[1]) {
        return differ("columns of the mask and rows of K differ", mask->ne[0], k->ne[1]);
    }
    if (mask->ne[1] < q->ne[1]) {
        return differ("the mask has fewer rows than Q", mask->ne[1], q->ne[1]);
    }
    if (mask->ne[2] < 1 || q->ne[2] % mask->ne[2] != 0) {
        return differ("query heads do not divide over the mask's", q->ne[2], mask->ne[2]);
    }
    if (mask->ne[3] < 1 || q->ne[3] % mask->ne[3] != 0) {
        return differ("streams do not divide over the mask's", q->ne[3], mask->ne[3]);
    }
    return "";
}

// Upstream converts iq4_nl to f16 only where it lies densely (ggml_get_to_fp16_nc_cuda has no case for it), and dense q8_0 by words of four
// bytes (convert.cu, dequantize_block_q8_0_f16).
static bool convertible(const ggml_tensor * t) {
    const bool dense = ggml_is_contiguously_allocated(t);
    return t->type == GGML_TYPE_IQ4_NL ? dense : t->type != GGML_TYPE_Q8_0 || !dense || t->view_src == nullptr || t->view_offs % 4 == 0;
}

// Kernels of upstream compute offsets of heads, and of rows of Q and the result, in 32 bits; those of K, V and mask rows some of them.
static int32_t width(const ggml_tensor * node) {
    const auto over = [](uint64_t n, uint64_t stride) { return n * stride > INT32_MAX; };
    const ggml_tensor *q = node->src[0], *mask = node->src[3];
    if (over(q->ne[1], q->nb[1]) || ggml_nelements(node) > INT32_MAX) {
        return 2;
    }
    int32_t width = mask != nullptr && over(mask->ne[1], mask->nb[1]) ? 1 : 0;
    for (const ggml_tensor * t : { q, (const ggml_tensor *) node->src[1], (const ggml_tensor *) node->src[2] }) {
        if (over(t->ne[2], t->nb[2]) || t->nb[1] > INT32_MAX) {
            return 2;
        }
        width = over(t->ne[1], t->nb[1]) ? 1 : width;
    }
    return width;
}

void describe(const ggml_tensor * node, Key & key) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    float max_bias, softcap;
    memcpy(&max_bias, (const float *) node->op_params + 1, sizeof(float));
    memcpy(&softcap, (const float *) node->op_params + 2, sizeof(float));
    const int32_t n_kv_max = node->op_params[4];

    key[PYLLM_ROUTE_HEAD]        = (int32_t) (k->ne[0] << 16 | v->ne[0]);
    key[PYLLM_ROUTE_GQA]         = (int32_t) (q->ne[2] / k->ne[2]);
    key[PYLLM_ROUTE_N_Q]         = (int32_t) q->ne[1];
    key[PYLLM_ROUTE_N_KV]        = (int32_t) k->ne[1];
    key[PYLLM_ROUTE_STREAMS]     = (int32_t) q->ne[3];
    key[PYLLM_ROUTE_KV]          = kv_type(ggml_type_name(k->type)) << 8 | kv_type(ggml_type_name(v->type));
    key[PYLLM_ROUTE_QUANTISED]   = ggml_is_quantized(k->type) || ggml_is_quantized(v->type);
    key[PYLLM_ROUTE_MASK]        = mask == nullptr ? MASK_NONE : mask->ne[2] > 1 ? MASK_HEAD : mask->ne[3] != q->ne[3] ? MASK_REPEAT : MASK_STREAM;
    key[PYLLM_ROUTE_ALIBI]       = max_bias != 0.0f;
    key[PYLLM_ROUTE_SOFTCAP]     = softcap != 0.0f;
    key[PYLLM_ROUTE_SINKS]       = node->src[4] != nullptr;
    key[PYLLM_ROUTE_ALIGN]       = std::min({ alignment(q), alignment(k), alignment(v) });
    key[PYLLM_ROUTE_MASK_ALIGN]  = alignment(mask);
    key[PYLLM_ROUTE_VIEW]        = is_view(k, v);
    key[PYLLM_ROUTE_CONVERTIBLE] = convertible(k) && convertible(v);
    key[PYLLM_ROUTE_ROWS]        = q->nb[0] == ggml_type_size(q->type) && k->nb[0] == ggml_type_size(k->type) && v->nb[0] == ggml_type_size(v->type) &&
                            (mask == nullptr || mask->nb[0] == ggml_type_size(mask->type));
    key[PYLLM_ROUTE_WIDE]     = width(node);
    key[PYLLM_ROUTE_SPARSITY] = n_kv_max > 0 ? (int32_t) (k->ne[1] / n_kv_max) : 0;
}

static std::string tensor_text(const char * role, const ggml_tensor * t) {
    if (t == nullptr) {
        return std::string(", ") + role + " none";
    }
    std::string text = std::string(", ") + role + " " + ggml_type_name(t->type) + " " + shape(t) + " strides [";
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        text += (i ? ", " : "") + std::to_string(t->nb[i]);
    }
    return text + "] offset " + std::to_string(t->view_src != nullptr ? t->view_offs : 0);
}

std::string node_text(const ggml_tensor * node) {
    float params[3];
    memcpy(params, node->op_params, sizeof(params));
    std::string text = std::string("`") + node->name + "`";
    static constexpr const char * roles[] = { "Q", "K", "V", "mask", "sinks" };
    for (int i = 0; i < 5; ++i) {
        text += tensor_text(roles[i], node->src[i]);
    }
    return text + ", scale " + std::to_string(params[0]) + ", ALiBi " + std::to_string(params[1]) + ", softcap " + std::to_string(params[2]) + ", result " + shape(node);
}

}  // namespace pyllm::route
