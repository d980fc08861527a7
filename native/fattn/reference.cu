// Attention of any shape. A block takes up to ROWS rows of Q that share a KV head (query positions x query heads) and a part of the KV rows:
//
//   for each tile of 32 KV rows that the mask leaves:  S = Q K^T (f32, K dequantised to shared memory in pieces)
//                                                      running softmax;  O += P V (V dequantised from memory, a column per thread)
//
// Parts are joined by a second kernel. All arithmetic is f32; nothing is assumed of n_kv, strides or alignment beyond that of an element.
#include "fattn/reference.cuh"

#include <algorithm>
#include <cfloat>

namespace {

constexpr int THREADS = 128;
constexpr int TILE    = 32;  // KV rows: one per lane
constexpr int PIECE   = 64;  // columns of K in shared memory at once
static_assert(THREADS % PIECE == 0, "a thread loads one column of a piece");

struct View {
    const char * data;
    int64_t      nb0, nb1, nb2, nb3;  // bytes
};

struct Shape {
    int d_k, d_v, n_q, n_kv, n_head, gqa, n_head_kv;
    int mask_heads, mask_streams;
    int parts, tiles_per_part;
    float    scale, softcap, max_bias, m0, m1;
    uint32_t n_head_log2;
};

// Element `i` of a row of `type` that begins at `row`; `nb0` is the stride of elements, or of blocks, in bytes.
template <ggml_type type> __device__ __forceinline__ float element(const char * __restrict__ row, const int64_t nb0, const int i) {
    if constexpr (type == GGML_TYPE_F32) {
        return *(const float *) (row + i*nb0);
    } else if constexpr (type == GGML_TYPE_F16) {
        return __half2float(*(const half *) (row + i*nb0));
    } else if constexpr (type == GGML_TYPE_BF16) {
        return __uint_as_float(uint32_t(*(const uint16_t *) (row + i*nb0)) << 16);
    } else {
        static_assert(QK8_0 == 32 && QK4_0 == 32 && QK4_1 == 32 && QK5_0 == 32 && QK5_1 == 32 && QK4_NL == 32, "blocks of 32");
        const char * block = row + (i / 32)*nb0;
        const int    j     = i % 32;
        const int    shift = j < 16 ? 0 : 4;
        if constexpr (type == GGML_TYPE_Q8_0) {
            const block_q8_0 * b = (const block_q8_0 *) block;
            return __half2float(b->d) * b->qs[j];
        } else if constexpr (type == GGML_TYPE_Q4_0) {
            const block_q4_0 * b = (const block_q4_0 *) block;
            return __half2float(b->d) * (((b->qs[j % 16] >> shift) & 15) - 8);
        } else if constexpr (type == GGML_TYPE_Q4_1) {
            const block_q4_1 * b = (const block_q4_1 *) block;
            return __low2float(b->dm) * ((b->qs[j % 16] >> shift) & 15) + __high2float(b->dm);
        } else if constexpr (type == GGML_TYPE_Q5_0) {
            const block_q5_0 * b    = (const block_q5_0 *) block;
            const int          high = ((b->qh[j / 8] >> (j % 8)) & 1) << 4;
            return __half2float(b->d) * ((((b->qs[j % 16] >> shift) & 15) | high) - 16);
        } else if constexpr (type == GGML_TYPE_Q5_1) {
            const block_q5_1 * b    = (const block_q5_1 *) block;
            const int          high = ((b->qh[j / 8] >> (j % 8)) & 1) << 4;
            return __low2float(b->dm) * (((b->qs[j % 16] >> shift) & 15) | high) + __high2float(b->dm);
        } else {
            static_assert(type == GGML_TYPE_IQ4_NL, "a KV cache type");
            const block_iq4_nl * b = (const block_iq4_nl *) block;
            return __half2float(b->d) * kvalues_iq4nl[(b->qs[j % 16] >> shift) & 15];
        }
    }
}

// Calls `f` with the type as a constant.
#define FOR_TYPE(type, f)                                                          \
    switch (type) {                                                                \
        case GGML_TYPE_F32:    f(std::integral_constant<ggml_type, GGML_TYPE_F32>());    break; \
        case GGML_TYPE_F16:    f(std::integral_constant<ggml_type, GGML_TYPE_F16>());    break; \
        case GGML_TYPE_BF16:   f(std::integral_constant<ggml_type, GGML_TYPE_BF16>());   break; \
        case GGML_TYPE_Q8_0:   f(std::integral_constant<ggml_type, GGML_TYPE_Q8_0>());   break; \
        case GGML_TYPE_Q5_1:   f(std::integral_constant<ggml_type, GGML_TYPE_Q5_1>());   break; \
        case GGML_TYPE_Q5_0:   f(std::integral_constant<ggml_type, GGML_TYPE_Q5_0>());   break; \
        case GGML_TYPE_Q4_1:   f(std::integral_constant<ggml_type, GGML_TYPE_Q4_1>());   break; \
        case GGML_TYPE_Q4_0:   f(std::integral_constant<ggml_type, GGML_TYPE_Q4_0>());   break; \
        case GGML_TYPE_IQ4_NL: f(std::integral_constant<ggml_type, GGML_TYPE_IQ4_NL>()); break; \
        default: break;                                                            \
    }

__device__ __forceinline__ float slope_of(const Shape & shape, const int head) {
    if (shape.max_bias == 0.0f) {
        return 1.0f;
    }
    const bool low = (uint32_t) head < shape.n_head_log2;
    return powf(low ? shape.m0 : shape.m1, low ? head + 1 : 2*(head - (int) shape.n_head_log2) + 1);
}

// ROWS rows of Q per block; COLUMNS columns of V per thread, so that THREADS*COLUMNS >= d_v.
template <int ROWS, int COLUMNS>
__launch_bounds__(THREADS)
__global__ void attention(const View q, const View k, const View v, const View mask, const float * __restrict__ sinks, float * __restrict__ dst,
                          float * __restrict__ partial, float2 * __restrict__ partial_meta, const Shape shape, const int type_k, const int type_v) {
    extern __shared__ float shared[];
    float * const q_s = shared;                          // [ROWS][d_k], scaled
    float * const k_s = q_s + ROWS*shape.d_k;            // [TILE][PIECE + 1]
    float * const p_s = k_s + TILE*(PIECE + 1);          // [ROWS][TILE]
    float * const rescale_s = p_s + ROWS*TILE;           // [ROWS]

    const int thread  = threadIdx.x;
    const int warp    = thread / 32;
    const int lane    = thread % 32;
    const int part    = blockIdx.y;
    const int kv_head = blockIdx.z % shape.n_head_kv;
    const int stream  = blockIdx.z / shape.n_head_kv;
    const int row0    = blockIdx.x*ROWS;
    const int n_rows  = min(ROWS, shape.n_q*shape.gqa - row0);

    const char * const k_head = k.data + kv_head*k.nb2 + stream*k.nb3;
    const char * const v_head = v.data + kv_head*v.nb2 + stream*v.nb3;

    for (int i = thread; i < ROWS*shape.d_k; i += THREADS) {
        const int r = i / shape.d_k;
        const int c = i % shape.d_k;
        float value = 0.0f;
        if (r < n_rows) {
            const int position = (row0 + r) / shape.gqa;
            const int head     = kv_head*shape.gqa + (row0 + r) % shape.gqa;
            value = shape.scale * *(const float *) (q.data + c*q.nb0 + position*q.nb1 + head*q.nb2 + stream*q.nb3);
        }
        q_s[i] = value;
    }

    // Rows of S that this warp computes: r = warp, warp + 4, ...; its running maximum and sum live in every lane.
    constexpr int OWN = (ROWS + 3) / 4;
    float largest[OWN], sum[OWN];
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
        largest[o] = -FLT_MAX;
        sum[o]     = 0.0f;
    }
    float out[ROWS][COLUMNS] = {};

    const int tile_begin = part*shape.tiles_per_part;
    const int tile_end   = min(tile_begin + shape.tiles_per_part, (shape.n_kv + TILE - 1) / TILE);
    for (int tile = tile_begin; tile < tile_end; ++tile) {
        const int  column  = tile*TILE + lane;
        const bool present = column < shape.n_kv;

        float bias[OWN];
        bool  visible = false;
#pragma unroll
        for (int o = 0; o < OWN; ++o) {
            const int r = warp + 4*o;
            bias[o] = present && r < n_rows ? 0.0f : -INFINITY;
            if (bias[o] == 0.0f && mask.data != nullptr) {
                const int position = (row0 + r) / shape.gqa;
                const int head     = kv_head*shape.gqa + (row0 + r) % shape.gqa;
                const float m = __half2float(*(const half *) (mask.data + column*mask.nb0 + position*mask.nb1 + (head % shape.mask_heads)*mask.nb2 +
                                                              (stream % shape.mask_streams)*mask.nb3));
                bias[o] = slope_of(shape, head)*m;
            }
            visible |= bias[o] > -INFINITY;
        }
        // Also the barrier between the reads of the last tile and the writes of this one.
        if (!__syncthreads_or(visible)) {
            continue;
        }

        float score[OWN] = {};
        for (int begin = 0; begin < shape.d_k; begin += PIECE) {
            const int width = min(PIECE, shape.d_k - begin);
            const auto load = [&](auto type) {
                // All loads of a thread are under way before the first is stored.
                float value[TILE*PIECE/THREADS];
#pragma unroll
                for (int n = 0; n < TILE*PIECE/THREADS; ++n) {
                    const int j = (n*THREADS + thread) / PIECE;
                    const int c = thread % PIECE;
                    value[n] = c < width && tile*TILE + j < shape.n_kv ? element<decltype(type)::value>(k_head + (int64_t) (tile*TILE + j)*k.nb1, k.nb0, begin + c) : 0.0f;
                }
#pragma unroll
                for (int n = 0; n < TILE*PIECE/THREADS; ++n) {
                    k_s[(n*THREADS + thread) / PIECE*(PIECE + 1) + thread % PIECE] = value[n];
                }
            };
            FOR_TYPE(type_k, load)
            __syncthreads();
            for (int c = 0; c < width; ++c) {
                const float key = k_s[lane*(PIECE + 1) + c];
#pragma unroll
                for (int o = 0; o < OWN; ++o) {
                    if (ROWS >= 4 || warp + 4*o < ROWS) {
                        score[o] += q_s[(warp + 4*o)*shape.d_k + begin + c]*key;
                    }
                }
            }
            __syncthreads();
        }

#pragma unroll
        for (int o = 0; o < OWN; ++o) {
            const int r = warp + 4*o;
            if (r >= ROWS) {
                continue;
            }
            // tanh by exp: with fast math, tanhf is good to 2^-11 only, which a softcap of 50 makes 0.02 of a logit.
            float s = shape.softcap != 0.0f ? shape.softcap*(1.0f - 2.0f/(expf(2.0f*score[o]) + 1.0f)) : score[o];
            s += bias[o];
            const float before = largest[o];
            largest[o] = fmaxf(before, warp_reduce_max(s));
            const float p = s > -INFINITY ? expf(s - largest[o]) : 0.0f;
            const float rescale = expf(before - largest[o]);
            sum[o] = sum[o]*rescale + warp_reduce_sum(p);
            p_s[r*TILE + lane] = p;
            if (lane == 0) {
                rescale_s[r] = rescale;
            }
        }
        __syncthreads();

#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float rescale = rescale_s[r];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                out[r][c] *= rescale;
            }
        }
        const int  here = min(TILE, shape.n_kv - tile*TILE);
        const auto add  = [&](auto type) {
            constexpr int AHEAD = 4;  // rows whose loads are under way together
            for (int j0 = 0; j0 < here; j0 += AHEAD) {
                float value[AHEAD][COLUMNS];
#pragma unroll
                for (int a = 0; a < AHEAD; ++a) {
                    // A row of V that no row of Q sees may hold anything, NaN too.
                    bool seen = false;
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        seen |= p_s[r*TILE + j0 + a] != 0.0f;
                    }
                    const char * const row = v_head + (int64_t) (tile*TILE + j0 + a)*v.nb1;
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) {
                        const int d = c*THREADS + thread;
                        value[a][c] = seen && d < shape.d_v ? element<decltype(type)::value>(row, v.nb0, d) : 0.0f;
                    }
                }
#pragma unroll
                for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        const float p = p_s[r*TILE + j0 + a];
#pragma unroll
                        for (int c = 0; c < COLUMNS; ++c) {
                            out[r][c] += p*value[a][c];
                        }
                    }
                }
            }
        };
        FOR_TYPE(type_v, add)
    }

    // The sums and maxima of all rows, for every thread.
    __syncthreads();
    float * const largest_s = p_s;
    float * const sum_s     = p_s + ROWS;
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
        if (lane == 0 && warp + 4*o < ROWS) {
            largest_s[warp + 4*o] = largest[o];
            sum_s[warp + 4*o]     = sum[o];
        }
    }
    __syncthreads();

    for (int r = 0; r < n_rows; ++r) {
        const int     position = (row0 + r) / shape.gqa;
        const int     head     = kv_head*shape.gqa + (row0 + r) % shape.gqa;
        const int64_t row      = ((int64_t) stream*shape.n_q + position)*shape.n_head + head;
        if (shape.parts > 1) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                if (const int d = c*THREADS + thread; d < shape.d_v) {
                    // The index of `out` has to be a constant: the loop over rows is not unrolled.
                    float value = 0.0f;
#pragma unroll
                    for (int i = 0; i < ROWS; ++i) {
                        value = i == r ? out[i][c] : value;
                    }
                    partial[(row*shape.parts + part)*shape.d_v + d] = value;
                }
            }
            if (thread == 0) {
                partial_meta[row*shape.parts + part] = make_float2(largest_s[r], sum_s[r]);
            }
            continue;
        }
        const float sink    = sinks != nullptr ? sinks[head] : -INFINITY;
        const float top     = fmaxf(largest_s[r], sink);
        const float weight  = expf(largest_s[r] - top);
        const float total   = sum_s[r]*weight + (sinks != nullptr ? expf(sink - top) : 0.0f);
        const float inverse = total > 0.0f ? weight/total : 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            if (const int d = c*THREADS + thread; d < shape.d_v) {
                float value = 0.0f;
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    value = i == r ? out[i][c] : value;
                }
                dst[row*shape.d_v + d] = value*inverse;
            }
        }
    }
}

// One block per row of the result.
__global__ void join(const float * __restrict__ partial, const float2 * __restrict__ meta, const float * __restrict__ sinks, float * __restrict__ dst,
                     const int n_head, const int d_v, const int parts) {
    const int64_t row  = blockIdx.x;
    const float   sink = sinks != nullptr ? sinks[row % n_head] : -INFINITY;
    float         top  = fmaxf(sink, -FLT_MAX);
    for (int part = 0; part < parts; ++part) {
        top = fmaxf(top, meta[row*parts + part].x);
    }
    float total = sinks != nullptr ? expf(sink - top) : 0.0f;
    for (int part = 0; part < parts; ++part) {
        total += meta[row*parts + part].y*expf(meta[row*parts + part].x - top);
    }
    const float inverse = total > 0.0f ? 1.0f/total : 0.0f;
    for (int d = threadIdx.x; d < d_v; d += blockDim.x) {
        float value = 0.0f;
        for (int part = 0; part < parts; ++part) {
            value += partial[(row*parts + part)*d_v + d]*expf(meta[row*parts + part].x - top);
        }
        dst[row*d_v + d] = value*inverse;
    }
}

View view_of(const ggml_tensor * t) {
    return t == nullptr ? View{} : View{ (const char *) t->data, (int64_t) t->nb[0], (int64_t) t->nb[1], (int64_t) t->nb[2], (int64_t) t->nb[3] };
}

template <int ROWS, int COLUMNS> void launch(ggml_backend_cuda_context & ctx, ggml_tensor * dst, Shape shape) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *sinks = dst->src[4];

    const int     n_sm     = ggml_cuda_info().devices[ctx.device].nsm;
    const int64_t n_blocks = (int64_t) ((shape.n_q*shape.gqa + ROWS - 1) / ROWS)*shape.n_head_kv*q->ne[3];
    const int     n_tiles  = (shape.n_kv + TILE - 1) / TILE;
    // Eight blocks for each multiprocessor hide the latency of loads, but no part is below 64 KV rows.
    const int wanted     = (int) std::clamp<int64_t>(8*n_sm / std::max<int64_t>(n_blocks, 1), 1, std::max(1, n_tiles / 2));
    shape.tiles_per_part = (n_tiles + wanted - 1) / wanted;
    shape.parts          = (n_tiles + shape.tiles_per_part - 1) / shape.tiles_per_part;

    const int64_t               rows = ggml_nrows(dst);
    ggml_cuda_pool_alloc<float> partial(ctx.pool());
    ggml_cuda_pool_alloc<float2> meta(ctx.pool());
    if (shape.parts > 1) {
        partial.alloc(rows*shape.parts*shape.d_v);
        meta.alloc(rows*shape.parts);
    }
    const size_t n_shared = (ROWS*shape.d_k + TILE*(PIECE + 1) + ROWS*TILE + ROWS)*sizeof(float);
    const dim3   grid((shape.n_q*shape.gqa + ROWS - 1) / ROWS, shape.parts, shape.n_head_kv*q->ne[3]);
    const float * sink_data = sinks != nullptr ? (const float *) sinks->data : nullptr;
    attention<ROWS, COLUMNS><<<grid, THREADS, n_shared, ctx.stream()>>>(view_of(q), view_of(k), view_of(v), view_of(dst->src[3]), sink_data, (float *) dst->data,
                                                                         partial.ptr, meta.ptr, shape, k->type, v->type);
    CUDA_CHECK(cudaGetLastError());
    if (shape.parts > 1) {
        join<<<rows, THREADS, 0, ctx.stream()>>>(partial.ptr, meta.ptr, sink_data, (float *) dst->data, shape.n_head, shape.d_v, shape.parts);
        CUDA_CHECK(cudaGetLastError());
    }
}

template <int ROWS> void launch_columns(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const Shape & shape) {
    if (shape.d_v <= THREADS) {
        launch<ROWS, 1>(ctx, dst, shape);
    } else if (shape.d_v <= 2*THREADS) {
        launch<ROWS, 2>(ctx, dst, shape);
    } else if (shape.d_v <= 4*THREADS) {
        launch<ROWS, 4>(ctx, dst, shape);
    } else {
        launch<ROWS, 8>(ctx, dst, shape);
    }
}

}  // namespace

void pyllm_fattn_reference(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    Shape shape{};
    shape.d_k          = (int) k->ne[0];
    shape.d_v          = (int) v->ne[0];
    shape.n_q          = (int) q->ne[1];
    shape.n_kv         = (int) k->ne[1];
    shape.n_head       = (int) q->ne[2];
    shape.n_head_kv    = (int) k->ne[2];
    shape.gqa          = shape.n_head / shape.n_head_kv;
    shape.mask_heads   = mask != nullptr ? (int) mask->ne[2] : 1;
    shape.mask_streams = mask != nullptr ? (int) mask->ne[3] : 1;
    memcpy(&shape.scale, (const float *) dst->op_params + 0, sizeof(float));
    memcpy(&shape.max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&shape.softcap, (const float *) dst->op_params + 2, sizeof(float));
    if (shape.softcap != 0.0f) {
        shape.scale /= shape.softcap;
    }
    shape.n_head_log2 = 1;
    while (2*shape.n_head_log2 <= (uint32_t) shape.n_head) {
        shape.n_head_log2 *= 2;
    }
    shape.m0          = powf(2.0f, -shape.max_bias / shape.n_head_log2);
    shape.m1          = powf(2.0f, -shape.max_bias / 2.0f / shape.n_head_log2);

    // Rows that share a KV head: more of them read K and V once for all.
    const int64_t rows = (int64_t) shape.n_q*shape.gqa;
    if (rows == 1) {
        launch_columns<1>(ctx, dst, shape);
    } else if (rows <= 4 || shape.d_k > 512 || shape.d_v > 512) {
        launch_columns<4>(ctx, dst, shape);
    } else {
        launch_columns<8>(ctx, dst, shape);
    }
}
