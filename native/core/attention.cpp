// Attention nodes of one shape, made to be timed: caches that no cache of the device holds, and graphs over them.
#include "core/error.h"
#include "core/library.h"
#include "route/axes.h"
#include "route/control.h"
#include "route/node.h"
#include "route/route.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

using namespace pyllm;

namespace {

struct free_backend {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};
struct free_buffer {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
};
struct free_context {
    void operator()(ggml_context * context) const { ggml_free(context); }
};

using backend_ptr = std::unique_ptr<ggml_backend, free_backend>;
using buffer_ptr  = std::unique_ptr<ggml_backend_buffer, free_buffer>;
using context_ptr = std::unique_ptr<ggml_context, free_context>;

backend_ptr backend_of(int32_t index, int32_t n_threads) {
    library_init();
    const int32_t n = (int32_t) ggml_backend_dev_count();
    require(index >= 0 && index < n, PYLLM_INVALID_ARGUMENT, format("device index %d is not in [0, %d)", index, n));
    ggml_backend_dev_t dev = ggml_backend_dev_get((size_t) index);
    backend_ptr        backend(ggml_backend_dev_init(dev, nullptr));
    require(backend != nullptr, PYLLM_UNSUPPORTED, std::string("device ") + ggml_backend_dev_name(dev) + " cannot be started: " + log_errors(), "see `pyllm doctor`");
    const auto set_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    if (set_threads != nullptr) {
        set_threads(backend.get(), n_threads > 0 ? n_threads : pyllm_default_threads());
    }
    return backend;
}

context_ptr tensors(size_t count) {
    return context_ptr(ggml_init({ ggml_tensor_overhead() * count + ggml_graph_overhead_custom(count, false) * 2 + (1 << 16), nullptr, true }));
}

// In floating point: what does not fit any memory may not fit 64 bits.
void check_room(ggml_backend_t backend, double bytes) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_get_device(backend), &free, &total);
    if (bytes > (free > 0 ? (double) free : 0x1p46)) {
        throw failure(PYLLM_OUT_OF_MEMORY, format("%.0f MiB do not fit %s, which has %zu free", bytes / (1 << 20), ggml_backend_name(backend), free >> 20),
                      "measure a shorter cache, fewer streams, or less cold memory");
    }
}

buffer_ptr allocate(ggml_context * context, ggml_backend_t backend) {
    buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context, backend));
    if (buffer == nullptr) {
        size_t bytes = 0;
        for (ggml_tensor * t = ggml_get_first_tensor(context); t != nullptr; t = ggml_get_next_tensor(context, t)) {
            bytes += t->view_src == nullptr ? ggml_nbytes(t) : 0;
        }
        throw failure(PYLLM_OUT_OF_MEMORY, format("%.0f MiB do not fit %s", (double) bytes / (1 << 20), ggml_backend_name(backend)), "measure a shorter cache, fewer streams, or less cold memory");
    }
    return buffer;
}

// Microseconds for `repeats` computations of a graph, queued one behind the other. Those before them do not count: a GPU runs a graph node by node
// at first, and captures it the second time.
double time(ggml_backend_t backend, ggml_cgraph * graph, int32_t repeats) {
    log_errors_clear();
    const auto compute = [&] {
        require(ggml_backend_graph_compute_async(backend, graph) == GGML_STATUS_SUCCESS, PYLLM_DECODE, "the graph failed: " + log_errors());
    };
    for (int i = 0; i < (ggml_backend_dev_type(ggml_backend_get_device(backend)) == GGML_BACKEND_DEVICE_TYPE_CPU ? 1 : 2); ++i) {
        compute();
    }
    ggml_backend_synchronize(backend);
    const auto begin = std::chrono::steady_clock::now();
    for (int32_t i = 0; i < repeats; ++i) {
        compute();
    }
    ggml_backend_synchronize(backend);
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

// Rows of normal values in the form that a tensor stores, as many as make a few MiB; tensors are filled with them again and again.
class Pattern {
public:
    Pattern(ggml_type type, int64_t row, uint64_t seed) : row_bytes_(ggml_row_size(type, row)) {
        // Odd, so that rows at a power of two from each other differ: reading the wrong one shows.
        n_rows_ = std::max<int64_t>(1, (1 << 20) / row) | 1;
        std::vector<float>              values(n_rows_ * row);
        std::mt19937_64                 random(seed);
        std::normal_distribution<float> normal;
        std::generate(values.begin(), values.end(), [&] { return normal(random); });
        bytes_.resize(n_rows_ * row_bytes_);
        if (type == GGML_TYPE_F32) {
            memcpy(bytes_.data(), values.data(), bytes_.size());
        } else {
            ggml_quantize_chunk(type, values.data(), bytes_.data(), 0, n_rows_, row, nullptr);
        }
    }

    void fill(ggml_tensor * tensor, uint64_t salt) const {
        const size_t total = ggml_nbytes(tensor);
        // Begin at another row each time: no two tensors are alike.
        size_t from = (size_t) (salt * 7919 % (uint64_t) n_rows_) * row_bytes_;
        for (size_t at = 0; at < total; from = 0) {
            const size_t size = std::min(bytes_.size() - from, total - at);
            ggml_backend_tensor_set(tensor, bytes_.data() + from, at, size);
            at += size;
        }
    }

private:
    size_t            row_bytes_;
    int64_t           n_rows_;
    std::vector<char> bytes_;
};

ggml_type kv_type_of(int32_t code) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char * name = ggml_type_name((ggml_type) type);
        if (name != nullptr && code >= 0 && route::kv_type(name) == code) {
            return (ggml_type) type;
        }
    }
    throw failure(PYLLM_INVALID_ARGUMENT, format("%d is no code of a KV cache type", code), "codes are those of the route axis `kv`");
}

void check(const pyllm_attention_shape & s) {
    const auto within = [](const char * name, int64_t value, int64_t low, int64_t high) {
        require(value >= low && value <= high, PYLLM_INVALID_ARGUMENT, format("%s is %lld, not in [%lld, %lld]", name, (long long) value, (long long) low, (long long) high));
    };
    within("d_k", s.d_k, 1, 1024);
    within("d_v", s.d_v, 1, 1024);
    within("n_head_kv", s.n_head_kv, 1, 1 << 16);
    within("n_head", s.n_head, 1, 1 << 20);
    within("n_q", s.n_q, 1, 1 << 20);
    within("n_kv", s.n_kv, 1, 1 << 30);
    within("streams", s.streams, 1, 1 << 16);
    within("mask", s.mask, route::MASK_NONE, route::MASK_HEAD);
    within("n_kv_max", s.n_kv_max, 0, s.n_kv);
    require(s.n_head % s.n_head_kv == 0, PYLLM_INVALID_ARGUMENT, format("%d query heads do not divide over %d KV heads", s.n_head, s.n_head_kv), "give a multiple");
    require(!s.alibi || s.mask != route::MASK_NONE, PYLLM_INVALID_ARGUMENT, "ALiBi without a mask", "ALiBi scales the mask: give one");
    require(!s.n_kv_max || s.mask != route::MASK_NONE, PYLLM_INVALID_ARGUMENT, "rows that a query may not see without a mask", "give a mask");
    require(!s.view || (s.type_k == s.type_v && s.d_v <= s.d_k), PYLLM_INVALID_ARGUMENT, "V cannot be a view of K", "a view has K's type and at most its head dim");
    for (const auto & [name, dim, type] : { std::tuple{ "K", s.d_k, kv_type_of(s.type_k) }, std::tuple{ "V", s.d_v, kv_type_of(s.type_v) } }) {
        require(dim % ggml_blck_size(type) == 0, PYLLM_INVALID_ARGUMENT, format("%d values of %s do not fill blocks of %d, which %s stores together", dim, name, (int) ggml_blck_size(type), ggml_type_name(type)),
                "use f16, bf16 or f32");
    }
}

}  // namespace

struct pyllm_attention {
    // Nodes over the same K and V, with results of their own.
    struct Lane {
        context_ptr                context;
        buffer_ptr                 results;
        std::vector<ggml_tensor *> nodes;
        ggml_cgraph *              graph = nullptr;
    };

    pyllm_attention(int32_t device, const pyllm_attention_shape & shape, uint64_t cold, uint64_t seed, int32_t n_threads) : backend(backend_of(device, n_threads)), shape(shape) {
        const ggml_type type_k = kv_type_of(shape.type_k), type_v = kv_type_of(shape.type_v);
        const double row = (double) (ggml_row_size(type_k, shape.d_k) + (shape.view ? 0 : ggml_row_size(type_v, shape.d_v)));
        const double own = (double) shape.n_kv * shape.n_head_kv * shape.streams * row;
        // One that was read is read again after all others: `cold` bytes later.
        n_nodes = (int32_t) std::clamp(std::ceil((double) cold / own), 2.0, (double) max_nodes);
        const double rows = (double) shape.n_q * shape.streams;
        check_room(backend.get(), n_nodes * own + rows * shape.n_head * 4.0 * (n_nodes * shape.d_k + 2.0 * shape.d_v) +
                                      (shape.mask == route::MASK_NONE ? 0.0 : rows * 2.0 * shape.n_kv * (shape.mask == route::MASK_HEAD ? shape.n_head : 1)));
        bytes = (uint64_t) own;
        inputs  = tensors(n_nodes * 6 + 8);
        ggml_context * ctx = inputs.get();
        for (int32_t i = 0; i < n_nodes; ++i) {
            q.push_back(ggml_permute(ctx, ggml_new_tensor_4d(ctx, GGML_TYPE_F32, shape.d_k, shape.n_head, shape.n_q, shape.streams), 0, 2, 1, 3));
            k.push_back(cache(ctx, type_k, shape.d_k));
            v.push_back(shape.view ? ggml_view_4d(ctx, k[i], shape.d_v, shape.n_kv, shape.n_head_kv, shape.streams, k[i]->nb[1], k[i]->nb[2], k[i]->nb[3], 0) : cache(ctx, type_v, shape.d_v));
        }
        if (shape.mask != route::MASK_NONE) {
            const int64_t streams = shape.mask == route::MASK_REPEAT ? 1 : shape.streams;
            mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, shape.n_kv, shape.n_q, shape.mask == route::MASK_HEAD ? shape.n_head : 1, streams);
        }
        if (shape.sinks) {
            sinks = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, shape.n_head);
        }
        storage = allocate(ctx, backend.get());
        const Pattern rows_q(GGML_TYPE_F32, shape.d_k, seed), rows_k(type_k, shape.d_k, seed + 1), rows_v(type_v, shape.d_v, seed + 2);
        for (int32_t i = 0; i < n_nodes; ++i) {
            rows_q.fill(q[i]->view_src, i);
            rows_k.fill(k[i]->view_src, i + 1);
            if (!shape.view) {
                rows_v.fill(v[i]->view_src, i + 2);
            }
        }
        if (sinks != nullptr) {
            Pattern(GGML_TYPE_F32, shape.n_head, seed + 3).fill(sinks, 0);
        }
        fill_mask();
    }

    // As llama.cpp's cache lies: [d, rows, heads, streams] over memory [d * heads, rows, streams].
    ggml_tensor * cache(ggml_context * ctx, ggml_type type, int64_t d) const {
        ggml_tensor * all = ggml_new_tensor_3d(ctx, type, d * shape.n_head_kv, shape.n_kv, shape.streams);
        return ggml_view_4d(ctx, all, d, shape.n_kv, shape.n_head_kv, shape.streams, all->nb[1], ggml_row_size(type, d), all->nb[2], 0);
    }

    // Causal over the last rows: query i is row n_kv - n_q + i, and sees n_kv_max rows up to itself where that is given.
    void fill_mask() const {
        if (mask == nullptr) {
            return;
        }
        const ggml_fp16_t        hidden = ggml_fp32_to_fp16(-INFINITY), seen = ggml_fp32_to_fp16(0.0f);
        std::vector<ggml_fp16_t> plane((size_t) shape.n_kv * shape.n_q, hidden);
        for (int64_t i = 0; i < shape.n_q; ++i) {
            const int64_t last  = std::max<int64_t>(0, (int64_t) shape.n_kv - shape.n_q + i);
            const int64_t first = shape.n_kv_max > 0 ? std::max<int64_t>(0, last + 1 - shape.n_kv_max) : 0;
            std::fill(plane.begin() + i * shape.n_kv + first, plane.begin() + i * shape.n_kv + last + 1, seen);
        }
        for (size_t at = 0; at < ggml_nbytes(mask); at += plane.size() * sizeof(ggml_fp16_t)) {
            ggml_backend_tensor_set(mask, plane.data(), at, plane.size() * sizeof(ggml_fp16_t));
        }
    }

    Lane & lane(int32_t number) {
        require(number >= 0 && number < max_lanes, PYLLM_INVALID_ARGUMENT, format("lane %d is not in [0, %d)", number, max_lanes));
        Lane & one = lanes[number];
        if (one.graph == nullptr) {
            context_ptr  context = tensors(n_nodes * 4 + 8);
            ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 4 * n_nodes + 8, false);
            std::vector<ggml_tensor *> nodes;
            for (int32_t i = 0; i < n_nodes; ++i) {
                ggml_tensor * node = ggml_flash_attn_ext(context.get(), q[i], k[i], v[i], mask, 1.0f / std::sqrt((float) shape.d_k), shape.alibi ? 8.0f : 0.0f, shape.softcap ? 20.0f : 0.0f);
                ggml_flash_attn_ext_set_prec(node, GGML_PREC_F32);
                if (sinks != nullptr) {
                    ggml_flash_attn_ext_add_sinks(node, sinks);
                }
                node->op_params[4] = shape.n_kv_max;
                ggml_build_forward_expand(graph, node);
                nodes.push_back(node);
            }
            buffer_ptr results = place(nodes);
            ggml_backend_buffer_clear(results.get(), 0xFF);  // what nobody writes is no number
            one = { std::move(context), std::move(results), std::move(nodes), graph };
        }
        return one;
    }

    // The first node's result stays to be read. The others share their memory, and what a kernel wants behind it, as layers of a model do.
    buffer_ptr place(const std::vector<ggml_tensor *> & nodes) const {
        ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(backend.get());
        const size_t align = ggml_backend_buft_get_alignment(type);
        const size_t size  = (ggml_backend_buft_get_alloc_size(type, nodes[0]) + align - 1) / align * align;
        buffer_ptr   buffer(ggml_backend_buft_alloc_buffer(type, 2 * size));
        if (buffer == nullptr) {
            throw failure(PYLLM_OUT_OF_MEMORY, format("%zu MiB for results do not fit %s", 2 * size >> 20, ggml_backend_name(backend.get())), "measure a shorter cache");
        }
        char * base = (char *) ggml_backend_buffer_get_base(buffer.get());
        for (size_t i = 0; i < nodes.size(); ++i) {
            if (ggml_backend_tensor_alloc(buffer.get(), nodes[i], base + (i == 0 ? 0 : size)) != GGML_STATUS_SUCCESS) {
                throw failure(PYLLM_INTERNAL, "a result does not lie in its buffer");
            }
        }
        return buffer;
    }

    static constexpr int32_t max_lanes = 8;
    static constexpr int32_t max_nodes = 1024;

    // In the order in which they may be made; freed the other way round.
    backend_ptr                backend;
    pyllm_attention_shape      shape;
    uint64_t                   bytes   = 0;
    int32_t                    n_nodes = 0;
    context_ptr                inputs;
    buffer_ptr                 storage;
    std::vector<ggml_tensor *> q, k, v;
    ggml_tensor *              mask  = nullptr;
    ggml_tensor *              sinks = nullptr;
    Lane                       lanes[max_lanes];
};

extern "C" {

pyllm_status pyllm_attention_create(int32_t device, const pyllm_attention_shape * shape, uint64_t cold, uint64_t seed, int32_t n_threads, pyllm_attention ** out) {
    return guard([&] {
        check(*not_null(shape, "shape"));
        *not_null(out, "out") = nullptr;
        *out = new pyllm_attention(device, *shape, cold, seed, n_threads);
    });
}

void pyllm_attention_free(pyllm_attention * attention) { delete attention; }

pyllm_status pyllm_attention_get(pyllm_attention * attention, int32_t * n_nodes, uint64_t * bytes, pyllm_route_key * key) {
    return guard([&] {
        *not_null(n_nodes, "n_nodes") = not_null(attention, "attention")->n_nodes;
        *not_null(bytes, "bytes")     = attention->bytes;
        route::Key axes{};
        route::device_facts(ggml_backend_name(attention->backend.get()), axes);
        route::describe(attention->lane(0).nodes[0], axes);
        std::memcpy(not_null(key, "key")->axis, axes.data(), sizeof(key->axis));
    });
}

pyllm_status pyllm_attention_time(pyllm_attention * attention, int32_t lane, int32_t repeats, double * us) {
    return guard([&] {
        require(repeats > 0, PYLLM_INVALID_ARGUMENT, format("%d repeats", repeats), "give at least 1");
        auto & one = not_null(attention, "attention")->lane(lane);
        ggml_backend_t backend = attention->backend.get();
        for (const ggml_tensor * node : one.nodes) {
            require(ggml_backend_supports_op(backend, node), PYLLM_UNSUPPORTED, std::string(ggml_backend_name(backend)) + " does not run " + route::node_text(node), "see `pyllm routes explain`");
        }
        *not_null(us, "us") = time(backend, one.graph, repeats) / repeats / attention->n_nodes;
    });
}

pyllm_status pyllm_attention_read(pyllm_attention * attention, int32_t what, int32_t number, float * values, size_t capacity, size_t * count) {
    return guard([&] {
        pyllm_attention & a = *not_null(attention, "attention");
        const auto        lists = { &a.q, &a.k, &a.v };
        require(what >= -3 && what < pyllm_attention::max_lanes, PYLLM_INVALID_ARGUMENT, format("tensor %d is not known", what), "-3, -2 and -1 are Q, K and V, others are lanes");
        const int32_t n = what < 0 ? a.n_nodes : 1;
        require(number >= 0 && number < n, PYLLM_INVALID_ARGUMENT, format("node %d is not in [0, %d)", number, n), "of a lane only the first node's result stays");
        const ggml_tensor * tensor = (what < 0 ? *lists.begin()[what + 3] : a.lane(what).nodes)[number];
        *not_null(count, "count") = (size_t) ggml_nelements(tensor);
        if (values == nullptr || capacity < *count) {
            return;
        }
        const ggml_tensor * base = tensor->view_src != nullptr ? tensor->view_src : tensor;
        std::vector<char>   bytes(ggml_nbytes(base));
        ggml_backend_tensor_get(base, bytes.data(), 0, bytes.size());
        const size_t offset = tensor->view_src != nullptr ? tensor->view_offs : 0;
        const auto   decode = ggml_get_type_traits(tensor->type)->to_float;
        for (int64_t i3 = 0; i3 < tensor->ne[3]; ++i3) {
            for (int64_t i2 = 0; i2 < tensor->ne[2]; ++i2) {
                for (int64_t i1 = 0; i1 < tensor->ne[1]; ++i1, values += tensor->ne[0]) {
                    const char * row = bytes.data() + offset + i1 * tensor->nb[1] + i2 * tensor->nb[2] + i3 * tensor->nb[3];
                    if (tensor->type == GGML_TYPE_F32) {
                        memcpy(values, row, tensor->ne[0] * sizeof(float));
                    } else {
                        decode(row, values, tensor->ne[0]);
                    }
                }
            }
        }
    });
}

pyllm_status pyllm_device_rates(int32_t device, uint64_t bytes, int32_t columns, int32_t n_threads, double * copied, double * computed) {
    return guard([&] {
        require(bytes >= 1 << 20 && columns >= 32 && columns % 32 == 0, PYLLM_INVALID_ARGUMENT, "too little to measure", "give at least 1 MiB, and a multiple of 32 columns");
        const backend_ptr backend = backend_of(device, n_threads);
        const context_ptr context = tensors(16);
        ggml_context *    ctx     = context.get();
        ggml_tensor *     from    = ggml_new_tensor_1d(ctx, GGML_TYPE_F16, (int64_t) bytes / 2);
        ggml_tensor *     to      = ggml_new_tensor_1d(ctx, GGML_TYPE_F16, (int64_t) bytes / 2);
        ggml_tensor *     copy    = ggml_cpy(ctx, from, to);
        const bool        gpu     = ggml_backend_dev_type(ggml_backend_get_device(backend.get())) != GGML_BACKEND_DEVICE_TYPE_CPU;
        ggml_tensor *     a       = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, columns, columns);
        ggml_tensor *     b       = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, columns, columns);
        ggml_tensor *     product = ggml_mul_mat(ctx, a, b);
        ggml_cgraph *     copies  = ggml_new_graph_custom(ctx, 8, false);
        ggml_cgraph *     multiplies = ggml_new_graph_custom(ctx, 8, false);
        ggml_build_forward_expand(copies, copy);
        ggml_build_forward_expand(multiplies, product);
        check_room(backend.get(), 2.0 * (double) bytes + 10.0 * columns * columns);
        const buffer_ptr storage = allocate(ctx, backend.get());
        // Multiplying zeros draws less power than multiplying numbers.
        Pattern(GGML_TYPE_F16, columns, 0).fill(from, 0);
        Pattern(GGML_TYPE_F16, columns, 1).fill(a, 0);
        Pattern(GGML_TYPE_F32, columns, 2).fill(b, 0);
        const auto best = [&](auto && once) {
            double least = INFINITY;
            for (int i = 0; i < 8; ++i) {
                least = std::min(least, once());
            }
            return least;
        };
        // A GPU copies by the driver, which is faster than a kernel that copies elements; a CPU by its threads.
        const auto copying = [&] {
            if (!gpu) {
                return time(backend.get(), copies, 2) / 2;
            }
            ggml_backend_synchronize(backend.get());
            const auto begin = std::chrono::steady_clock::now();
            for (int i = 0; i < 4; ++i) {
                ggml_backend_tensor_copy_async(backend.get(), backend.get(), from, to);
            }
            ggml_backend_synchronize(backend.get());
            return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 4;
        };
        *not_null(copied, "copied")     = 2.0 * (double) ggml_nbytes(from) / best(copying) / 1e3;
        *not_null(computed, "computed") = 2.0 * columns * columns * (double) columns / best([&] { return time(backend.get(), multiplies, 2) / 2; }) / 1e3;
    });
}

}  // extern "C"
