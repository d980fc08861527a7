// The verify kernel whose warps work on a tile together.
#pragma once

#include "fattn/verify/block.cuh"

namespace pyllm::verify {

template <class T, int MIN_BLOCKS> __launch_bounds__(T::THREADS, MIN_BLOCKS) __global__ void attend(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 800  // asynchronous copies; the route table sends nothing here on other devices
    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(8) uint64_t full_k[STAGES], full_v[STAGES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x/32;
    const int g = lane/4, t = lane % 4;

    const int slot_k = T::N*tile_stride(T::TYPE_K == ANY ? a.type_k : T::TYPE_K, T::D_K), slot_v = T::N*tile_stride(T::TYPE_V == ANY ? a.type_v : T::TYPE_V, T::D_V);
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

    const Block block(a, T::M, 1);
    Ring<T::N, T::THREADS, T::TYPE_K, T::D_K> keys;
    Ring<T::N, T::THREADS, T::TYPE_V, T::D_V> values;
    keys.start(a.k, a.at_k, block.kv_head, block.stream, a.n_kv, a.type_k, a.width_k, a.boxes_k, ring_k, full_k);
    values.start(a.v, a.at_v, block.kv_head, block.stream, a.n_kv, a.type_v, a.width_v, a.boxes_v, ring_v, full_v);

    block.list_rows<T>(a, row_s, slope_s);
#pragma unroll 1
    for (int r = threadIdx.x; r < T::M; r += T::THREADS) {
        high_s[r] = -INFINITY;
    }
    __syncthreads();  // the mbarriers are initialised
    wait_for_predecessor();
    const int n_tiles = block.begin<T>(a, row_s, q_s, found, list, [&](int i) {  // the first tiles are seen nearly always
        copy_both(keys, values, i < block.count, block.first + i, i);
    }, [] {});
    const auto tile_at = [&](int i) { return block.first + (list[i] & ~PLAIN); };
    copy_anew(keys, values, 0, 1, block.first, block.count, n_tiles, tile_at, [] { __syncthreads(); });
    int newest = 0;  // the last tile whose K is under way

    // This warp's part of S: rows of Q from m0 on, KV rows of the tile from n0 on.
    const bool scores = warp < T::KV_WARPS*T::M_WARPS;
    const int  m0     = warp/T::KV_WARPS*T::OWN_M*16;
    const int  n0     = warp % T::KV_WARPS*T::ROWS;
    // And of O: the `slice`th columns of V, KV rows of the tile from v0 on.
    const int  slice  = warp % T::SLICES, v0 = warp/T::SLICES*(T::N/T::V_SHARES);
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
        const int      column = (block.first + (entry & ~PLAIN))*T::N + n0;
        const char *   k_tile = ring_k + stage*slot_k + k_shift;
        const char *   v_tile = ring_v + stage*slot_v + v_shift;
        char * const   p_tile = p_s + i % 2*T::M*T::P_STRIDE;
        float          s[T::OWN_M][T::OWN_N][4] = {};
        float          more[T::OWN_M][2];

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
                score<T, own>(s, [&](uint32_t (&to)[4], int m, int step) { load_matrices(to, q_at + m*16*T::Q_STRIDE + step*32); }, k_tile + n0*tile_stride(own, T::D_K));
            });
            bias<T>(a, block, s, row_s, slope_s, m0, column, entry & PLAIN);
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    exceeds |= largest(s, m, h) > high[m][h] + RAISE;
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
                        const float x = row_maximum(largest(s, m, h));
                        if (t == 0) {
                            top_s[warp % T::KV_WARPS*T::M + m0 + 16*m + g + 8*h] = x;
                        }
                    }
                }
            }
            __syncthreads();
#pragma unroll 1
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
            constexpr int  own  = decltype(type)::value;
            const uint32_t p_at = shared_address(p_tile) + lane % 16*T::P_STRIDE + lane/16*16 + 2*v0;
            weigh<T, own>(o, [&](uint32_t (&to)[4], int m, int step) { load_matrices(to, p_at + m*16*T::P_STRIDE + step*32); }, v_tile + v0*tile_stride(own, T::D_V), slice);
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
                const float x = row_sum(sum[m][h]);
                if (t == 0) {
                    top_s[warp % T::KV_WARPS*T::M + m0 + 16*m + g + 8*h] = x;
                }
            }
        }
    }
    // Warps that have the same columns of V put their O where Q, P and the rings were.
    float * const o_s = (float *) shared;  // [V_SHARES][M][O_STRIDE]
    static_assert(T::V_SHARES == 1 || T::V_SHARES*T::M*T::O_STRIDE*4 <= T::M*(T::Q_STRIDE + 2*T::P_STRIDE) + STAGES*T::N*(tile_stride(T::TYPE_K, T::D_K) + tile_stride(T::TYPE_V, T::D_V)), "they have room there");
    if constexpr (T::V_SHARES > 1) {
#pragma unroll
        for (int m = 0; m < T::M_TILES; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                write_row<T::TYPE_V>(o[m], h, 1.0f, o_s + (warp/T::SLICES*T::M + 16*m + g + 8*h)*T::O_STRIDE + slice*T::SLICE, t);
            }
        }
    }
    __syncthreads();
    // Once for each row: its position becomes its place, its factor what O is multiplied by.
#pragma unroll 1
    for (int r = threadIdx.x; r < T::M; r += T::THREADS) {
        const int2 at = row_s[r];
        if (at.y >= 0) {
            float all = 0.0f;
#pragma unroll
            for (int w = 0; w < T::KV_WARPS; ++w) {
                all += top_s[w*T::M + r];
            }
            const Block::End end = block.end(a, at, high_s[r], all);
            row_s[r].x  = (int) end.place;
            factor_s[r] = end.by;
        }
    }
    __syncthreads();
    if constexpr (T::V_SHARES > 1) {
        add_up<T, T::V_SHARES>(a, row_s, factor_s, 1, o_s);
    } else {
#pragma unroll
        for (int m = 0; m < T::M_TILES; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int  r  = 16*m + g + 8*h;
                const int2 at = row_s[r];
                if (at.y >= 0) {
                    const float by = factor_s[r];
                    Block::write(a, (uint32_t) at.x, T::D_V, [&](auto * to) {
                        with_type<T::TYPE_V, T::D_V>(a.type_v, [&](auto type) { write_row<decltype(type)::value>(o[m], h, by, to + slice*T::SLICE, t); });
                    });
                }
            }
        }
    }
#endif
}

}  // namespace pyllm::verify
