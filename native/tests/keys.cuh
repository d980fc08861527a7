// Attention nodes drawn at random, and their graphs.
#pragma once

#include "tests/float64.cuh"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>

namespace {

// ---------------------------------------------------------------- keys

struct Case {
    int d_k, d_v, gqa, n_head_kv, n_q, n_kv, streams;
    ggml_type type_k, type_v;
    int   mask;        // 0 none, 1 stream, 2 repeat, 3 head
    int   mask_kind;   // of fill_mask
    int   n_max;       // 0: not said
    float empty;       // share of rows that see nothing
    bool  alibi, softcap, sinks, view;
    int   layout;      // 0 cache of just these rows, 1 rows of a longer cache, 2 heads one after the other, 3 misaligned
    float scale_factor;
    float v_by;        // deviation of V
};

template <typename T> T pick(std::mt19937_64 & random, std::initializer_list<T> list) {
    return list.begin()[random() % list.size()];
}

Case draw(std::mt19937_64 & random) {
    static const std::pair<int, int> heads[] = { { 40, 40 },   { 64, 64 },   { 72, 72 },   { 80, 80 },   { 96, 96 },   { 112, 112 }, { 128, 128 },
                                                 { 160, 160 }, { 192, 128 }, { 256, 256 }, { 320, 256 }, { 512, 512 }, { 576, 512 } };
    Case c{};
    std::tie(c.d_k, c.d_v) = heads[random() % std::size(heads)];
    c.gqa       = pick(random, { 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 32 });
    c.n_head_kv = pick(random, { 1, 1, 2, 4 });
    c.n_q       = pick(random, { 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 512 });
    c.n_kv      = pick(random, { 1, 113, 255, 256, 257, 512, 1000, 4096, 8191, 32768 });
    c.streams   = pick(random, { 1, 1, 1, 2, 3, 8 });
    while ((int64_t) c.n_kv*c.d_k*c.n_head_kv*c.streams > 1 << 25 && c.streams*c.n_head_kv > 1) {
        (c.streams > 1 ? c.streams : c.n_head_kv) = 1;
    }
    const auto fits = [](ggml_type type, int d) { return !ggml_is_quantized(type) || d % 32 == 0; };
    do {
        c.type_k = kv_types[random() % std::size(kv_types)];
    } while (!fits(c.type_k, c.d_k));
    do {
        c.type_v = random() % 2 ? c.type_k : kv_types[random() % std::size(kv_types)];
    } while (!fits(c.type_v, c.d_v));
    c.mask      = pick(random, { 0, 1, 1, 1, 1, 1, 1, 1, 2, 3 });
    c.mask_kind = random() % 2;
    c.empty     = random() % 4 == 0 ? 0.3f : 0.0f;
    c.alibi     = c.mask != 0 && random() % 7 == 0;
    c.softcap   = random() % 7 == 0;
    c.sinks     = random() % 7 == 0;
    c.layout    = pick(random, { 0, 0, 0, 1, 1, 2, 3 });
    c.view      = c.d_k == 576 && random() % 4 != 0;
    if (c.view) {
        c.type_v = c.type_k;
    }
    if (c.mask == 1 && c.n_kv >= 4096 && random() % 3 == 0) {
        c.mask_kind = 2;
        c.n_max     = pick(random, { 16, 64, 256 });
    }
    c.scale_factor = pick(random, { 1.0f, 1.0f, 4.0f });
    if (c.mask != 0 && c.mask_kind < 2 && random() % 6 == 0) {
        c.mask_kind = 3;
    }
    c.v_by = c.view || random() % 4 != 0 ? 1.0f : 1.0f/64;
    return c;
}

// K or V as people's caches have it: [d, rows, heads, streams] over memory [d, heads, rows + padding, streams].
ggml_tensor * cache(ggml_context * ctx, const Case & c, ggml_type type, int64_t d) {
    if (c.layout == 2) {
        return ggml_new_tensor_4d(ctx, type, d, c.n_kv, c.n_head_kv, c.streams);
    }
    const int64_t rows = c.n_kv + (c.layout == 0 ? 0 : 37);
    // A row of another length misaligns all that follow; quantised rows cannot be. Of these an even number of heads are the middle ones of a cache of two
    // more: they begin where a head ends.
    const bool    odd    = c.layout == 3, blocks = ggml_is_quantized(type), middle = odd && blocks && c.n_head_kv % 2 == 0;
    const int64_t width  = d*c.n_head_kv + (middle ? 2*d : odd ? blocks ? 32 : 3 : 0);
    ggml_tensor * all    = ggml_new_tensor_3d(ctx, type, width, rows, c.streams);
    const size_t  skip   = middle ? ggml_row_size(type, d) : odd && !blocks ? ggml_type_size(type) : 0;
    return ggml_view_4d(ctx, all, d, c.n_kv, c.n_head_kv, c.streams, all->nb[1], ggml_row_size(type, d), all->nb[2], skip);
}

struct Graph {
    ggml_context * ctx = nullptr;
    ggml_cgraph *  graph = nullptr;
    ggml_tensor *  node = nullptr;
    ~Graph() { ggml_free(ctx); }
};

void build(Graph & g, const Case & c) {
    g.ctx = ggml_init({ ggml_tensor_overhead()*32 + ggml_graph_overhead(), nullptr, true });
    const int n_head = c.gqa*c.n_head_kv;
    ggml_tensor * q;
    if (c.layout == 3) {
        ggml_tensor * all = ggml_new_tensor_4d(g.ctx, GGML_TYPE_F32, c.d_k + 1, n_head, c.n_q, c.streams);
        q = ggml_permute(g.ctx, ggml_view_4d(g.ctx, all, c.d_k, n_head, c.n_q, c.streams, all->nb[1], all->nb[2], all->nb[3], 4), 0, 2, 1, 3);
    } else {
        q = ggml_permute(g.ctx, ggml_new_tensor_4d(g.ctx, GGML_TYPE_F32, c.d_k, n_head, c.n_q, c.streams), 0, 2, 1, 3);
    }
    ggml_tensor * k = cache(g.ctx, c, c.type_k, c.d_k);
    ggml_tensor * v = c.view ? ggml_view_4d(g.ctx, k, c.d_v, c.n_kv, c.n_head_kv, c.streams, k->nb[1], k->nb[2], k->nb[3], 0) : cache(g.ctx, c, c.type_v, c.d_v);
    ggml_tensor * mask = nullptr;
    if (c.mask != 0) {
        const int streams = c.mask == 2 && c.streams > 1 ? 1 : c.streams;
        mask = ggml_new_tensor_4d(g.ctx, GGML_TYPE_F16, c.n_kv, c.n_q, c.mask == 3 ? n_head : 1, streams);
    }
    const float softcap = c.softcap ? 20.0f : 0.0f;
    g.node = ggml_flash_attn_ext(g.ctx, q, k, v, mask, c.scale_factor/sqrtf(c.d_k), c.alibi ? 8.0f : 0.0f, softcap);
    ggml_flash_attn_ext_set_prec(g.node, GGML_PREC_F32);
    if (c.sinks) {
        ggml_flash_attn_ext_add_sinks(g.node, ggml_new_tensor_1d(g.ctx, GGML_TYPE_F32, n_head));
    }
    if (c.n_max) {
        ggml_set_op_params_i32(g.node, 4, c.n_max);
    }
    g.graph = ggml_new_graph_custom(g.ctx, 8, false);
    ggml_build_forward_expand(g.graph, g.node);
}

ggml_tensor * storage(ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

void allocate(const Graph & g, ggml_backend_buffer_t arena) {
    ggml_tallocr alloc = ggml_tallocr_new(arena);
    for (ggml_tensor * t = ggml_get_first_tensor(g.ctx); t; t = ggml_get_next_tensor(g.ctx, t)) {
        if (t->view_src == nullptr) {
            ggml_tallocr_alloc(&alloc, t);
        } else {
            ggml_backend_view_init(t);
        }
    }
}

void fill_tensor(ggml_tensor * t, uint64_t seed, float by = 1.0f) {
    t = storage(t);
    const int64_t n = ggml_nelements(t)/ggml_blck_size(t->type);
    fill<<<1024, 256>>>((char *) t->data, t->type, n, seed, by);
}

Tensor tensor_of(const ggml_tensor * t) {
    return t ? Tensor{ (const char *) t->data, (int64_t) t->nb[0], (int64_t) t->nb[1], (int64_t) t->nb[2], (int64_t) t->nb[3], (int) t->type } : Tensor{};
}

}  // namespace
