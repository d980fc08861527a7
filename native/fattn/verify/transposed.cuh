// The verify kernel for q8_0 and q4_0: S^T = K Q^T and O^T = V^T P^T, whose first operands are quants as they are (raw.cuh).
//
// Rows of Q are columns of the products, so they come by eights: decoding a token, and drafts of a few where heads share K and V little. Teams of warps have
// tiles and rings of their own. A team reads `HEADS` neighbouring KV heads; the warps of one head divide the tile's KV rows for S and V's columns for O, and P
// goes from one to the other through shared memory. Where a head has one warp, P stays in registers.
#pragma once

#include "fattn/verify/block.cuh"
#include "fattn/verify/raw.cuh"

namespace pyllm::verify {

template <int D_K_, int D_V_, int M_, int N_, int WARPS_, int TEAMS_, int HEADS_, int TYPE_K_, int TYPE_V_> struct Transposed {
    static constexpr int D_K = D_K_, D_V = D_V_, M = M_, N = N_, WARPS = WARPS_, TEAMS = TEAMS_, HEADS = HEADS_, TYPE_K = TYPE_K_, TYPE_V = TYPE_V_;
    static constexpr int THREADS = 32*WARPS;
    static constexpr int MATES = WARPS/TEAMS, OF_HEAD = MATES/HEADS;
    static constexpr int Q_TILES = M/8, KV_TILES = N/16/OF_HEAD;
    static constexpr int K_BLOCKS = D_K/32, SLICE = D_V/OF_HEAD, V_BLOCKS = SLICE/32;
    static constexpr float Q_FIRST = Raw<TYPE_K>::Q_FIRST, Q_LAST = Raw<TYPE_K>::Q_LAST;
    static constexpr int SETS = TEAMS*OF_HEAD;   // of maxima and sums
    static constexpr int Q_STRIDE = 2*D_K + 16;  // bytes; odd multiples of 16
    static constexpr int P_STRIDE = 2*N + 16;
    static constexpr int O_STRIDE = D_V + 4;     // floats; what joins the teams
    static_assert(MATES % HEADS == 0 && M % 8 == 0 && WARPS % TEAMS == 0 && N % (16*OF_HEAD) == 0 && D_K % 64 == 0 && SLICE % 32 == 0, "whole fragments");
    static_assert(V_BLOCKS <= 16, "a row of a fragment for each block");
    static_assert(OF_HEAD == 1 || N % 32 == 0, "P is loaded with 32 KV rows");
    static_assert(TEAMS < 16, "a barrier for each team");
};

// S^T += K Q^T for this warp's KV rows, of which this lane's first is at `row`, in units of 1/K_UNIT. `less`: [Q_TILES][K_BLOCKS][4], where the products begin.
template <class T>
static __device__ __forceinline__ void score_raw(float (&s)[T::KV_TILES][T::Q_TILES][4], uint32_t q_at, const float4 * less, const char * row) {
    constexpr int stride = tile_stride(T::TYPE_K, T::D_K*T::HEADS);
    const int     t      = threadIdx.x % 4;
    const auto    block  = [&](int b, auto odd) {
        uint32_t q[T::Q_TILES][4];
        float4   from[T::Q_TILES];
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
            load_matrices(q[j], q_at + j*8*T::Q_STRIDE + b*64);
            from[j] = less[(j*T::K_BLOCKS + b)*4 + t];
        }
#pragma unroll
        for (int i = 0; i < T::KV_TILES; ++i) {
            uint32_t    near[4], far[4];
            const float d0 = Raw<T::TYPE_K>::template load_k<decltype(odd)::value>(row + 16*i*stride, b, t, near);
            const float d1 = Raw<T::TYPE_K>::template load_k<decltype(odd)::value>(row + (16*i + 8)*stride, b, t, far);
#pragma unroll
            for (int j = 0; j < T::Q_TILES; ++j) {
                float x[4] = { from[j].x, from[j].y, from[j].z, from[j].w };
                multiply_add(x, { near[0], far[0], near[1], far[1] }, q[j][0], q[j][1]);
                multiply_add(x, { near[2], far[2], near[3], far[3] }, q[j][2], q[j][3]);
                s[i][j][0] += d0*x[0];
                s[i][j][1] += d0*x[1];
                s[i][j][2] += d1*x[2];
                s[i][j][3] += d1*x[3];
            }
        }
    };
#pragma unroll 4
    for (int b = 0; b < T::K_BLOCKS; b += 2) {
        block(b, std::false_type());
        block(b + 1, std::true_type());
    }
}

// O^T += V^T P^T for this warp's columns, in units of 1/V_FIRST and 1/V_LAST; `less`: the sums of P d for each block. `p(fragment, step)` gives KV rows 16 step..
// of P. `row`: KV row 2t, this warp's first block.
template <class T, class P>
static __device__ __forceinline__ void weigh_raw(float (&o)[T::V_BLOCKS][2][T::Q_TILES][4], float (&less)[T::Q_TILES][4], P && p, const char * row) {
    constexpr int stride = tile_stride(T::TYPE_V, T::D_V*T::HEADS);
    const int     g      = threadIdx.x % 32/4;
#pragma unroll
    for (int step = 0; step < T::N/16; ++step) {
        uint32_t of[T::Q_TILES][2], scales[4] = {};
        p(of, step);
#pragma unroll
        for (int b = 0; b < T::V_BLOCKS; ++b) {
            uint32_t    near[4], far[4];
            const half2 d0 = Raw<T::TYPE_V>::load_v(row + 16*step*stride, row + (16*step + 1)*stride, b, g, near);
            const half2 d1 = Raw<T::TYPE_V>::load_v(row + (16*step + 8)*stride, row + (16*step + 9)*stride, b, g, far);
            if (g == b % 8) {
                scales[b/8]     = bits_of(d0);
                scales[2 + b/8] = bits_of(d1);
            }
#pragma unroll
            for (int j = 0; j < T::Q_TILES; ++j) {
                const uint32_t p0 = bits_of(__hmul2(half2_of(of[j][0]), d0)), p1 = bits_of(__hmul2(half2_of(of[j][1]), d1));
                multiply_add(o[b][0][j], { near[0], near[1], far[0], far[1] }, p0, p1);
                multiply_add(o[b][1][j], { near[2], near[3], far[2], far[3] }, p0, p1);
            }
        }
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
            multiply_add(less[j], scales, of[j][0], of[j][1]);
        }
    }
}

// Softcap and mask of this warp's scores: rows of Q from `m0`, KV rows from `column`.
template <class T>
static __device__ __forceinline__ void bias_transposed(const Arguments & a, const Block & block, float (&s)[T::KV_TILES][T::Q_TILES][4], const int2 * row_s,
                                                       const float * slope_s, int m0, int column, bool plain) {
    const int       g = threadIdx.x % 32/4, t = threadIdx.x % 4;
    constexpr float unit = Raw<T::TYPE_K>::K_UNIT;
    if (a.softcap != 0.0f) {
#pragma unroll
        for (int i = 0; i < T::KV_TILES; ++i) {
#pragma unroll
            for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[i][j][e] = a.softcap*(1.0f - 2.0f/(exp2_of(2.0f*unit*s[i][j][e]) + 1.0f))*(1.0f/unit);
                }
            }
        }
    }
    if (!plain) {
        // All loads are under way before the first is waited for: the slowest block has such a tile.
        half x[T::KV_TILES][T::Q_TILES][4];
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const char * row = block.mask + (row_s[m0 + 8*j + 2*t + e].x - block.first_position)*a.mask_row;
#pragma unroll
                for (int i = 0; i < 2*T::KV_TILES; ++i) {
                    x[i/2][j][i % 2*2 + e] = block.mask != nullptr ? *(const half *) (row + 2*min(column + 8*i + g, a.n_kv - 1)) : __ushort_as_half(0);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float slope = slope_s[m0 + 8*j + 2*t + e]*(1.0f/unit);
#pragma unroll
                for (int i = 0; i < 2*T::KV_TILES; ++i) {
                    s[i/2][j][i % 2*2 + e] += column + 8*i + g < a.n_kv ? slope*__half2float(x[i/2][j][i % 2*2 + e]) : -INFINITY;
                }
            }
        }
    }
}

// Over the eight lanes that have a column of a fragment.
static __device__ __forceinline__ float column_maximum(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 4));
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 8));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 16));
}

static __device__ __forceinline__ float column_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 4);
    x += __shfl_xor_sync(0xFFFFFFFF, x, 8);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 16);
}

template <class T, int MIN_BLOCKS> __launch_bounds__(T::THREADS, MIN_BLOCKS) __global__ void attend_transposed(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 800  // asynchronous copies; the route table sends nothing here on other devices
    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(8) uint64_t full_k[T::TEAMS][STAGES], full_v[T::TEAMS][STAGES];
    using K = Raw<T::TYPE_K>;
    using V = Raw<T::TYPE_V>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x/32;
    const int g = lane/4, t = lane % 4;
    constexpr int ROWS = T::HEADS*T::M;
    // This warp's KV head among the tile's, and its share of that.
    const int team = warp/T::MATES, head = warp % T::MATES/T::OF_HEAD, mate = warp % T::OF_HEAD, m0 = head*T::M;

    constexpr int    slot_k  = T::N*tile_stride(T::TYPE_K, T::D_K*T::HEADS), slot_v = T::N*tile_stride(T::TYPE_V, T::D_V*T::HEADS);
    float2 * const   stats_s = (float2 *) shared;                      // [SETS][ROWS]: reference maximum, sum; before the end the maxima of a tile
    float2 * const   joined_s = stats_s + T::SETS*ROWS;                // [ROWS]
    float * const    slope_s = (float *) (joined_s + ROWS);            // [ROWS]
    int2 * const     row_s   = (int2 *) (slope_s + ROWS);              // [ROWS]: position and query head; a row that is not there has head -1
    uint16_t * const list    = (uint16_t *) (row_s + ROWS);            // [MAX_TILES]
    uint8_t * const  found   = (uint8_t *) (list + MAX_TILES);         // [MAX_TILES]
    float4 * const   less_s  = (float4 *) (shared + head_bytes(ROWS, T::SETS));  // [ROWS/8][K_BLOCKS][4]: where products of K begin
    char * const     q_s     = (char *) (less_s + ROWS/8*T::K_BLOCKS*4);         // f16 [ROWS][D_K], scaled
    char * const     p_s     = q_s + ROWS*T::Q_STRIDE + (T::OF_HEAD > 1 ? (team*ROWS + m0)*T::P_STRIDE : 0);  // f16 [M][N]
    char * const     ring_k  = q_s + ROWS*T::Q_STRIDE + (T::OF_HEAD > 1 ? T::TEAMS*ROWS*T::P_STRIDE : 0) + team*STAGES*(slot_k + slot_v);
    char * const     ring_v  = ring_k + STAGES*slot_k;
    float * const    o_s     = (float *) q_s;                          // [TEAMS][ROWS][O_STRIDE], when all tiles are done

    const auto meet = [&]() { meet_at(1 + team, 32*T::MATES); };

    const Block block(a, T::M, T::HEADS);
    Ring<T::N, 32*T::MATES, T::TYPE_K, T::D_K*T::HEADS> keys;
    Ring<T::N, 32*T::MATES, T::TYPE_V, T::D_V*T::HEADS> values;
    keys.start(a.k, a.at_k, block.kv_head, block.stream, a.n_kv, a.type_k, a.width_k, a.boxes_k, ring_k, full_k[team]);
    values.start(a.v, a.at_v, block.kv_head, block.stream, a.n_kv, a.type_v, a.width_v, a.boxes_v, ring_v, full_v[team]);
    block.list_rows<T>(a, row_s, slope_s);
    __syncthreads();  // the mbarriers are initialised
    wait_for_predecessor();
    const uint32_t q_lane = shared_address(q_s) + lane % 8*T::Q_STRIDE + lane/8*16;
    const int n_tiles = block.begin<T>(
        a, row_s, q_s, found, list,
        [&](int i) {  // the first tiles are seen nearly always
            copy_both(keys, values, team + i*T::TEAMS < block.count, block.first + team + i*T::TEAMS, i);
        },
        [&]() {  // what the offset of K's quants takes from the products of each block
            for (int i = warp; i < ROWS/8*T::K_BLOCKS; i += T::WARPS) {
                uint32_t q[4];
                load_matrices(q, q_lane + i/T::K_BLOCKS*8*T::Q_STRIDE + i % T::K_BLOCKS*64);
                float x[4] = {};
                multiply_add(x, { K::LESS_FIRST, K::LESS_FIRST, K::LESS_FIRST, K::LESS_FIRST }, q[0], q[1]);
                multiply_add(x, { K::LESS_LAST, K::LESS_LAST, K::LESS_LAST, K::LESS_LAST }, q[2], q[3]);
                if (g == 0) {
                    less_s[4*i + t] = make_float4(x[0], x[1], x[2], x[3]);
                }
            }
        });
    const auto tile_at = [&](int i) { return block.first + (list[i] & ~PLAIN); };
    // Teams come to their barriers equally often, here and after the loop: what looks for races counts on that.
    for (int i = copy_anew(keys, values, team, T::TEAMS, block.first, block.count, n_tiles, tile_at, meet); i < STAGES; ++i) {
        meet();
    }

    float high[T::Q_TILES][2], sum[T::Q_TILES][2];
#pragma unroll
    for (int j = 0; j < T::Q_TILES; ++j) {
        high[j][0] = high[j][1] = -INFINITY;
        sum[j][0] = sum[j][1] = 0.0f;
    }
    float o[T::V_BLOCKS][2][T::Q_TILES][4] = {}, less[T::Q_TILES][4] = {};

    const int n0 = mate*T::KV_TILES*16;
    const int k_at = keys.shift() + head*row_bytes(T::TYPE_K, T::D_K) + (n0 + g)*tile_stride(T::TYPE_K, T::D_K*T::HEADS);
    const int v_at = values.shift() + head*row_bytes(T::TYPE_V, T::D_V) + mate*T::V_BLOCKS*block_bytes(T::TYPE_V) + 2*t*tile_stride(T::TYPE_V, T::D_V*T::HEADS);
    int       stage = 0, moves = 0;  // of the reference maximum, where barriers belong to it
#pragma unroll 1
    for (int i = team; i < n_tiles; i += T::TEAMS) {
        const uint16_t entry = list[i];
        const int      next  = i + STAGES*T::TEAMS;
        float          s[T::KV_TILES][T::Q_TILES][4] = {};
        uint32_t       p[T::KV_TILES][T::Q_TILES][2];

        // Copies come in the order K0 V0 K1 V1 ...: behind those of this tile lie both of the tiles after.
        keys.wait(stage);
        if (!keys.bulk() || !values.bulk()) {
            wait_copies<2*STAGES - 2>();
            meet();
        }
        score_raw<T>(s, q_lane + m0*T::Q_STRIDE, less_s + m0/8*T::K_BLOCKS*4, ring_k + stage*slot_k + k_at);
        bias_transposed<T>(a, block, s, row_s, slope_s, m0, (block.first + (entry & ~PLAIN))*T::N + n0, entry & PLAIN);

        const auto largest_of = [&](int j, int e) {
            float x = fmaxf(s[0][j][e], s[0][j][2 + e]);
#pragma unroll
            for (int n = 1; n < T::KV_TILES; ++n) {
                x = fmaxf(x, fmaxf(s[n][j][e], s[n][j][2 + e]));
            }
            return x*K::K_UNIT;
        };
        // P against the reference maximum, transposed.
        const auto soften = [&](float (&more)[T::Q_TILES][2]) {
#pragma unroll
            for (int j = 0; j < T::Q_TILES; ++j) {
                const float at0 = high[j][0] == -INFINITY ? 0.0f : high[j][0], at1 = high[j][1] == -INFINITY ? 0.0f : high[j][1];
                more[j][0] = more[j][1] = 0.0f;
#pragma unroll
                for (int n = 0; n < T::KV_TILES; ++n) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float x = exp2_of(s[n][j][2*h]*K::K_UNIT - at0), y = exp2_of(s[n][j][2*h + 1]*K::K_UNIT - at1);
                        more[j][0] += x;
                        more[j][1] += y;
                        p[n][j][h] = transposed(bits_of(__floats2half2_rn(x, y)));
                    }
                }
            }
        };
        const auto move = [&](int j, int e, float to) {
            const float f = high[j][e] == -INFINITY ? 0.0f : exp2_of(high[j][e] - to);
            high[j][e] = to;
            sum[j][e] *= f;
            less[j][e] *= f;
            less[j][2 + e] *= f;
#pragma unroll
            for (int b = 0; b < T::V_BLOCKS; ++b) {
                o[b][0][j][e] *= f;
                o[b][0][j][2 + e] *= f;
                o[b][1][j][e] *= f;
                o[b][1][j][2 + e] *= f;
            }
        };
        bool exceeds = false;
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
            exceeds |= largest_of(j, 0) > high[j][0] + (V::LIFT + V::RAISE) || largest_of(j, 1) > high[j][1] + (V::LIFT + V::RAISE);
        }
        float more[T::Q_TILES][2];
        if constexpr (T::OF_HEAD == 1) {
            if (__any_sync(0xFFFFFFFF, exceeds)) {
#pragma unroll
                for (int j = 0; j < T::Q_TILES; ++j) {
                    move(j, 0, fmaxf(high[j][0], column_maximum(largest_of(j, 0)) - V::LIFT));
                    move(j, 1, fmaxf(high[j][1], column_maximum(largest_of(j, 1)) - V::LIFT));
                }
            }
            soften(more);
        } else {
            // The barrier that every tile has: P is there, K is done with. Where a score exceeds, the reference maximum moves and it comes again.
            float * const maxima = (float *) (stats_s + team*T::OF_HEAD*ROWS) + m0;  // [OF_HEAD][ROWS]
            while (true) {
                soften(more);
#pragma unroll
                for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
                    for (int n = 0; n < T::KV_TILES; ++n) {
                        char * const to = p_s + (8*j + g)*T::P_STRIDE + 2*(n0 + 16*n + 2*t);
                        *(uint32_t *) to = p[n][j][0];
                        *(uint32_t *) (to + 16) = p[n][j][1];
                    }
                }
                if (!any_at(1 + team, 32*T::MATES, exceeds)) {
                    break;
                }
                exceeds = false;
                ++moves;
#pragma unroll
                for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float x = column_maximum(largest_of(j, e));
                        if (g == 0) {
                            maxima[mate*ROWS + 8*j + 2*t + e] = x;
                        }
                    }
                }
                meet();
#pragma unroll
                for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float to = high[j][e];
#pragma unroll
                        for (int w = 0; w < T::OF_HEAD; ++w) {
                            to = fmaxf(to, maxima[w*ROWS + 8*j + 2*t + e] - V::LIFT);
                        }
                        move(j, e, to);
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
            sum[j][0] += more[j][0];
            sum[j][1] += more[j][1];
        }
        constexpr bool EARLY = T::OF_HEAD > 1;  // K's slot is free already
        if (EARLY) {
            if (next < n_tiles) {
                keys.copy(tile_at(next), stage);
            }
            commit_copies();
        }
        values.wait(stage);
        const uint32_t p_at = shared_address(p_s) + lane % 8*T::P_STRIDE + lane/8*16;
        uint32_t       pair[T::Q_TILES][4];
        weigh_raw<T>(
            o, less,
            [&](uint32_t (&to)[T::Q_TILES][2], int step) {
#pragma unroll
                for (int j = 0; j < T::Q_TILES; ++j) {
                    if constexpr (T::OF_HEAD == 1) {
                        to[j][0] = p[step][j][0];
                        to[j][1] = p[step][j][1];
                    } else {
                        if (step % 2 == 0) {
                            load_matrices(pair[j], p_at + j*8*T::P_STRIDE + step*32);
                        }
                        to[j][0] = pair[j][step % 2*2];
                        to[j][1] = pair[j][step % 2*2 + 1];
                    }
                }
            },
            ring_v + stage*slot_v + v_at);
        meet();
        if (EARLY) {
            if (next < n_tiles) {
                values.copy(tile_at(next), stage);
            }
            commit_copies();
        } else {
            copy_both(keys, values, next < n_tiles, next < n_tiles ? tile_at(next) : 0, stage);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    if (n_tiles % T::TEAMS != 0 && team >= n_tiles % T::TEAMS) {
        for (int i = (!keys.bulk() || !values.bulk()) + (T::OF_HEAD > 1) + 1; i > 0; --i) {
            meet();
        }
    }
    dependents_may_start();
    if (T::OF_HEAD > 1) {
        // Until all teams have moved as often, told by barriers alone. The first also waits until the maxima of a tile are read, which lie where the sums come.
#pragma unroll 1
        for (int i = 0; __syncthreads_or(moves > i); ++i) {
            if (moves <= i) {
                meet();
                meet();
            }
        }
    }
#pragma unroll
    for (int j = 0; j < T::Q_TILES; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const float x = column_sum(sum[j][e]);
            if (g == 0) {
                stats_s[(team*T::OF_HEAD + mate)*ROWS + m0 + 8*j + 2*t + e] = make_float2(high[j][e], x);
            }
        }
    }
    join_teams<T>(a, block, row_s, stats_s, joined_s, o_s, [&]() {
#pragma unroll
        for (int j = 0; j < T::Q_TILES; ++j) {
            const int r = m0 + 8*j + 2*t;
            float     f[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                f[e] = high[j][e] == -INFINITY ? 0.0f : exp2_of(high[j][e] - joined_s[r + e].x);
            }
#pragma unroll
            for (int b = 0; b < T::V_BLOCKS; ++b) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float   off = V::OFFSET*f[e]*__shfl_sync(0xFFFFFFFF, less[j][b/8*2 + e], b % 8*4 + t);
                    const float   first = V::V_FIRST*f[e], last = V::V_LAST*f[e];
                    float * const to  = o_s + (team*ROWS + r + e)*T::O_STRIDE + mate*T::SLICE + 32*b + 2*g;
                    store(to, o[b][0][j][e]*first - off, o[b][0][j][2 + e]*first - off);
                    store(to + 16, o[b][1][j][e]*last - off, o[b][1][j][2 + e]*last - off);
                }
            }
        }
    });
#endif
}

}  // namespace pyllm::verify
