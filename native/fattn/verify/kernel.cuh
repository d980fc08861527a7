// The verify kernel.
#pragma once

#include "fattn/verify/mask.cuh"
#include "fattn/verify/queries.cuh"
#include "fattn/verify/tile.cuh"

namespace pyllm::verify {

// ALiBi's factor of a query head.
static __device__ __noinline__ float slope_of(float m0, float m1, uint32_t n_head_log2, uint32_t head) {
    return head < n_head_log2 ? powf(m0, head + 1) : powf(m1, 2*(head - n_head_log2) + 1);
}

template <class T, int MIN_BLOCKS> __launch_bounds__(T::THREADS, MIN_BLOCKS) __global__ void attend(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 800  // asynchronous copies; the route table sends nothing here on other devices
    extern __shared__ __align__(128) char shared[];
    __shared__ int total;
    __shared__ __align__(8) uint64_t full_k[STAGES], full_v[STAGES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x/32;
    const int g = lane/4, t = lane % 4;

    const int slot_k = T::slot_k(T::TYPE_K == ANY ? a.type_k : T::TYPE_K), slot_v = T::slot_v(T::TYPE_V == ANY ? a.type_v : T::TYPE_V);
    char * const     q_s     = shared;                                // f16 [M][D_K], scaled
    char * const     p_s     = q_s + T::M*T::Q_STRIDE;                // f16 [2][M][N]
    char * const     ring_k  = p_s + 2*T::M*T::P_STRIDE;              // [STAGES]
    char * const     ring_v  = ring_k + STAGES*slot_k;             // [STAGES]
    float * const    top_s   = (float *) (ring_v + STAGES*slot_v);  // [KV_WARPS][M]: maxima of a tile; at the end the sums
    float * const    high_s  = top_s + T::KV_WARPS*T::M;              // [M]: reference maximum
    float * const    factor_s = high_s + T::M;                        // [M]: what its last move scales by
    float * const    slope_s = factor_s + T::M;                       // [M]
    int2 * const     row_s   = (int2 *) (slope_s + T::M);             // [M]: position and query head; a row that is not there has head -1
    uint16_t * const list    = (uint16_t *) (row_s + T::M);           // [MAX_TILES]
    uint8_t * const  found   = (uint8_t *) (list + MAX_TILES);        // [MAX_TILES]

    const int part    = blockIdx.y;
    const int row_tile = blockIdx.x % a.row_tiles, head_stream = blockIdx.x/a.row_tiles;
    const int kv_head  = head_stream % a.n_head_kv, stream = head_stream/a.n_head_kv;
    const int row0     = row_tile*T::M;
    const int rows    = min(T::M, a.n_q*a.gqa - row0);
    const auto position_of = [&](int row) { return (int) (row*a.per_gqa >> 32); };
    const int first_position = position_of(row0);
    const int positions      = position_of(row0 + rows - 1) - first_position + 1;
    const char * const q    = a.q + stream*a.at_q.stream;
    const char * const mask = a.mask == nullptr ? nullptr : a.mask + first_position*a.mask_row + stream % a.mask_streams*a.mask_stream;
    const int first = first_tile(part, a.tiles, a.parts);
    const int count = first_tile(part + 1, a.tiles, a.parts) - first;

    Ring<T::N, T::THREADS, T::TYPE_K, T::D_K> keys;
    Ring<T::N, T::THREADS, T::TYPE_V, T::D_V> values;
    keys.start(a.k, a.at_k, kv_head, stream, a.n_kv, a.type_k, a.width_k, a.boxes_k, ring_k, full_k);
    values.start(a.v, a.at_v, kv_head, stream, a.n_kv, a.type_v, a.width_v, a.boxes_v, ring_v, full_v);

    for (int r = threadIdx.x; r < T::M; r += T::THREADS) {
        const int position = position_of(row0 + min(r, rows - 1));
        const int head     = kv_head*a.gqa + (row0 + min(r, rows - 1)) - position*a.gqa;
        high_s[r]  = -INFINITY;
        row_s[r]   = make_int2(position, r < rows ? head : -1);
        slope_s[r] = a.max_bias == 0.0f ? 1.44269504f : 1.44269504f*slope_of(a.m0, a.m1, a.n_head_log2, head);
    }
    wait_for_predecessor();
    // The first tile is seen nearly always: it is under way while the mask is looked at.
    keys.copy(first, 0);
    commit_copies();
    values.copy(first, 0);
    commit_copies();

    const bool permuted = is_quantised(T::TYPE_K == ANY ? a.type_k : T::TYPE_K);
    Queries<T> queries;
    queries.load(a, q, row0, rows, kv_head*a.gqa, 0);
    look_at_tiles<T>(a, mask, positions, first, count, found);
    queries.store(a, q_s, 0, permuted);
#pragma unroll 1
    for (int u = Queries<T>::BATCH; u < Queries<T>::EACH; u += Queries<T>::BATCH) {
        queries.load(a, q, row0, rows, kv_head*a.gqa, u);
        queries.store(a, q_s, u, permuted);
    }
    __syncthreads();
    if (warp == 0) {
        const int n = list_tiles(found, count, list);
        if (lane == 0) {
            total = n;
        }
    }
    __syncthreads();
    const int n_tiles = total;
    const auto tile_at = [&](int i) { return first + (list[i] & ~PLAIN); };
    if (n_tiles == 0 || tile_at(0) != first) {
        wait_copies<0>();
        keys.wait(0);
        values.wait(0);
    }
    if (n_tiles > 0 && tile_at(0) != first) {
        __syncthreads();
        keys.copy(tile_at(0), 0);
        values.copy(tile_at(0), 0);
        commit_copies();
        wait_copies<0>();
    }
    int newest = first;  // the last tile whose K is under way
#pragma unroll 1
    for (int i = 1; i < STAGES; ++i) {
        if (i < n_tiles) {
            newest = tile_at(i);
            keys.copy(newest, i);
        }
        commit_copies();
        if (i < n_tiles) {
            values.copy(newest, i);
        }
        commit_copies();
    }

    // This warp's part of S: rows of Q from m0 on, KV rows of the tile from n0 on.
    const bool scores = warp < T::KV_WARPS*T::M_WARPS;
    const int  m0     = warp/T::KV_WARPS*T::OWN_M*16;
    const int  n0     = warp % T::KV_WARPS*T::ROWS;
    const uint32_t q_at = shared_address(q_s) + (m0 + lane % 16)*T::Q_STRIDE + lane/16*16;
    float high[T::OWN_M][2], sum[T::OWN_M][2];
#pragma unroll
    for (int m = 0; m < T::OWN_M; ++m) {
        high[m][0] = high[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0.0f;
    }
    float o[T::M_TILES][T::FRAGMENTS][4] = {};

    wait_copies<2*STAGES - 1>();
    __syncthreads();

    const int k_shift = keys.shift(), v_shift = values.shift();
    int       stage   = 0;  // i % STAGES
    for (int i = 0; i < n_tiles; ++i) {
        const uint16_t entry  = list[i];
        const int      column = (first + (entry & ~PLAIN))*T::N + n0;
        const char *   k_tile = ring_k + stage*slot_k + k_shift;
        const char *   v_tile = ring_v + stage*slot_v + v_shift;
        char * const   p_tile = p_s + i % 2*T::M*T::P_STRIDE;
        float          s[T::OWN_M][T::OWN_N][4] = {};
        float          more[T::OWN_M][2];

        // The largest score of this lane in a row.
        const auto largest = [&](int m, int h) {
            float x = fmaxf(s[m][0][2*h], s[m][0][2*h + 1]);
#pragma unroll
            for (int n = 1; n < T::OWN_N; ++n) {
                x = fmaxf(x, fmaxf(s[m][n][2*h], s[m][n][2*h + 1]));
            }
            return x;
        };
        // P against the reference maximum, and the sums that it adds.
        const auto soften = [&]() {
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float at = high[m][h] == -INFINITY ? 0.0f : high[m][h];
                    char * const to = p_tile + (m0 + 16*m + g + 8*h)*T::P_STRIDE + 2*(n0 + 2*t);
                    more[m][h] = 0.0f;
#pragma unroll
                    for (int n = 0; n < T::OWN_N; ++n) {
                        const float x = exp2_of(s[m][n][2*h] - at), y = exp2_of(s[m][n][2*h + 1] - at);
                        more[m][h] += x + y;
                        *(half2 *) (to + 16*n) = __floats2half2_rn(x, y);
                    }
                }
            }
        };

        bool exceeds = false;
        keys.wait(stage);
        if (scores) {
            with_type<T::TYPE_K, T::D_K>(a.type_k, [&](auto type) {
                constexpr int own = decltype(type)::value;
                score<T, own>(s, q_at, k_tile + n0*tile_stride(own, T::D_K));
            });
            if (a.softcap != 0.0f) {
#pragma unroll
                for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                    for (int n = 0; n < T::OWN_N; ++n) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            s[m][n][e] = a.softcap*(1.0f - 2.0f/(exp2_of(2.0f*s[m][n][e]) + 1.0f));
                        }
                    }
                }
            }
            if (!(entry & PLAIN)) {
#pragma unroll
                for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int    r   = m0 + 16*m + g + 8*h;
                        const char * row = mask + (row_s[r].x - first_position)*a.mask_row;
#pragma unroll
                        for (int n = 0; n < T::OWN_N; ++n) {
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                const int c = column + 8*n + 2*t + e;
                                s[m][n][2*h + e] += c >= a.n_kv ? -INFINITY : mask == nullptr ? 0.0f : slope_s[r]*__half2float(*(const half *) (row + 2*c));
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    exceeds |= largest(m, h) > high[m][h] + RAISE;
                }
            }
        }
        // The barrier that every tile has; where a score exceeds, the reference maximum moves and it comes again.
        while (true) {
            if (scores) {
                soften();
            }
            wait_copies<2*STAGES - 4>();
            if (!__syncthreads_or(exceeds)) {
                break;
            }
            exceeds = false;
            if (scores) {
#pragma unroll
                for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        float x = largest(m, h);
                        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
                        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
                        if (t == 0) {
                            top_s[warp % T::KV_WARPS*T::M + m0 + 16*m + g + 8*h] = x;
                        }
                    }
                }
            }
            __syncthreads();
            for (int r = threadIdx.x; r < T::M; r += T::THREADS) {
                const float from = high_s[r];
                float       to   = from;
                for (int w = 0; w < T::KV_WARPS; ++w) {
                    to = fmaxf(to, top_s[w*T::M + r]);
                }
                high_s[r]   = to;
                factor_s[r] = from == -INFINITY ? 0.0f : exp2_of(from - to);
            }
            __syncthreads();
#pragma unroll
            for (int m = 0; m < T::M_TILES; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float f = factor_s[16*m + g + 8*h];
#pragma unroll
                    for (int j = 0; j < T::FRAGMENTS; ++j) {
                        o[m][j][2*h] *= f;
                        o[m][j][2*h + 1] *= f;
                    }
                }
            }
            if (scores) {
#pragma unroll
                for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int r = m0 + 16*m + g + 8*h;
                        sum[m][h] *= factor_s[r];
                        high[m][h] = high_s[r];
                    }
                }
            }
        }
        // The slots of V before and of this K are free.
        if (i > 0) {
            if (i - 1 + STAGES < n_tiles) {
                values.copy(newest, stage == 0 ? STAGES - 1 : stage - 1);
            }
            commit_copies();
        }
        if (i + STAGES < n_tiles) {
            newest = tile_at(i + STAGES);
            keys.copy(newest, stage);
        }
        commit_copies();
        if (scores) {
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
                sum[m][0] += more[m][0];
                sum[m][1] += more[m][1];
            }
        }
        values.wait(stage);
        with_type<T::TYPE_V, T::D_V>(a.type_v, [&](auto type) {
            weigh<T, decltype(type)::value>(o, shared_address(p_tile) + lane % 16*T::P_STRIDE + lane/16*16, v_tile, warp);
        });
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    dependents_may_start();
    __syncthreads();
    if (scores) {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float x = sum[m][h];
                x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
                x += __shfl_xor_sync(0xFFFFFFFF, x, 2);
                if (t == 0) {
                    top_s[warp % T::KV_WARPS*T::M + m0 + 16*m + g + 8*h] = x;
                }
            }
        }
    }
    __syncthreads();
    const bool permuted_v = is_quantised(T::TYPE_V == ANY ? a.type_v : T::TYPE_V);
#pragma unroll
    for (int m = 0; m < T::M_TILES; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = 16*m + g + 8*h;
            if (r >= rows) {
                continue;
            }
            const int     head = row_s[r].y;
            const int64_t row  = ((int64_t) stream*a.n_q + row_s[r].x)*a.n_head + head;
            float all = 0.0f;
#pragma unroll
            for (int w = 0; w < T::KV_WARPS; ++w) {
                all += top_s[w*T::M + r];
            }
            const float at = high_s[r];
            float       by = 1.0f;
            float *     to;
            if (a.parts > 1) {
                to = a.partial + (row*a.parts + part)*T::D_V;
                if (warp == 0 && t == 0) {
                    a.meta[row*a.parts + part] = make_float2(at, all);
                }
            } else {
                to = a.dst + row*T::D_V;
                const float sink = a.sinks != nullptr ? 1.44269504f*a.sinks[head] : -INFINITY;
                const float most = fmaxf(fmaxf(at, sink), -1e30f);
                const float own  = exp2_of(at - most);
                const float full = all*own + exp2_of(sink - most);
                by = full > 0.0f ? own/full : 0.0f;
            }
            to += warp*T::SLICE;
            if (permuted_v) {
#pragma unroll
                for (int j = 0; j < T::FRAGMENTS; j += 2) {  // elements 4t to 4t + 3 of 16, see kv.cuh
                    *(float4 *) (to + 8*j + 4*t) = make_float4(o[m][j][2*h]*by, o[m][j + 1][2*h]*by, o[m][j][2*h + 1]*by, o[m][j + 1][2*h + 1]*by);
                }
            } else {
#pragma unroll
                for (int j = 0; j < T::FRAGMENTS; ++j) {
                    *(float2 *) (to + 8*j + 2*t) = make_float2(o[m][j][2*h]*by, o[m][j][2*h + 1]*by);
                }
            }
        }
    }
#endif
}

}  // namespace pyllm::verify
