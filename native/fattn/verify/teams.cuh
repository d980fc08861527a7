// The verify kernel whose warps work on tiles of their own.
//
// A team's warps divide the rows of Q. Each makes its part of S, softens it and weighs V with it from registers: within a tile nothing goes through shared
// memory but K and V, and no warp waits for one of another team. At the end the teams' O are joined in shared memory.
#pragma once

#include "fattn/verify/block.cuh"

namespace pyllm::verify {

template <class T, int MIN_BLOCKS> __launch_bounds__(T::THREADS, MIN_BLOCKS) __global__ void attend_in_teams(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 800  // asynchronous copies; the route table sends nothing here on other devices
    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(8) uint64_t full_k[T::TEAMS][STAGES], full_v[T::TEAMS][STAGES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x/32;
    const int g = lane/4, t = lane % 4;
    constexpr int ROWS = T::HEADS*T::M;
    // This warp's first row among the block's, and its KV head among the tile's.
    const int team = warp/T::MATES, m0 = warp % T::MATES*T::OWN_M*16, head = warp % T::MATES/T::OF_HEAD;

    const int type_k = T::TYPE_K == ANY ? a.type_k : T::TYPE_K, type_v = T::TYPE_V == ANY ? a.type_v : T::TYPE_V;
    const int slot_k = T::N*tile_stride(type_k, T::D_K*T::HEADS), slot_v = T::N*tile_stride(type_v, T::D_V*T::HEADS);
    float2 * const   stats_s = (float2 *) shared;                      // [TEAMS][ROWS]: reference maximum, sum
    float2 * const   joined_s = stats_s + T::TEAMS*ROWS;               // [ROWS]
    float * const    slope_s = (float *) (joined_s + ROWS);            // [ROWS]
    int2 * const     row_s   = (int2 *) (slope_s + ROWS);              // [ROWS]: position and query head; a row that is not there has head -1
    uint16_t * const list    = (uint16_t *) (row_s + ROWS);            // [MAX_TILES]
    uint8_t * const  found   = (uint8_t *) (list + MAX_TILES);         // [MAX_TILES]
    char * const     q_s     = shared + head_bytes(ROWS, T::TEAMS);    // f16 [ROWS][D_K], scaled
    char * const     ring_k  = q_s + ROWS*T::Q_STRIDE + team*STAGES*(slot_k + slot_v);
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
    const int n_tiles = block.begin<T>(a, row_s, q_s, found, list, [&](int i) {  // the first tiles are seen nearly always
        copy_both(keys, values, team + i*T::TEAMS < block.count, block.first + team + i*T::TEAMS, i);
    }, [] {});
    const auto tile_at = [&](int i) { return block.first + (list[i] & ~PLAIN); };
    // Teams come to their barriers equally often, here and after the loop: what looks for races counts on that.
    for (int i = copy_anew(keys, values, team, T::TEAMS, block.first, block.count, n_tiles, tile_at, meet); i < STAGES; ++i) {
        meet();
    }

    const uint32_t q_at = shared_address(q_s) + (m0 + lane % 16)*T::Q_STRIDE + lane/16*16;
    uint32_t       held[T::HELD ? T::OWN_M : 1][T::HELD ? T::D_K/16 : 1][4];
    if constexpr (T::HELD) {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int step = 0; step < T::D_K/16; ++step) {
                load_matrices(held[m][step], q_at + m*16*T::Q_STRIDE + step*32);
            }
        }
    }
    float high[T::OWN_M][2], sum[T::OWN_M][2];
#pragma unroll
    for (int m = 0; m < T::OWN_M; ++m) {
        high[m][0] = high[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0.0f;
    }
    float o[T::OWN_M][T::FRAGMENTS][4] = {};

    const int k_at = keys.shift() + head*row_bytes(type_k, T::D_K), v_at = values.shift() + head*row_bytes(type_v, T::D_V);
    int       stage   = 0;
#pragma unroll 1
    for (int i = team; i < n_tiles; i += T::TEAMS) {
        const uint16_t entry = list[i];
        float          s[T::OWN_M][T::OWN_N][4] = {};

        // Copies come in the order K0 V0 K1 V1 ...: behind those of this tile lie both of the tiles after.
        keys.wait(stage);
        if (!keys.bulk() || !values.bulk()) {
            wait_copies<2*STAGES - 2>();
            meet();
        }
        with_type<T::TYPE_K, T::D_K>(a.type_k, [&](auto type) {
            score<T, decltype(type)::value>(
                s,
                [&](uint32_t (&to)[4], int m, int step) {
                    if constexpr (T::HELD) {
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            to[j] = held[m][step][j];
                        }
                    } else {
                        load_matrices(to, q_at + m*16*T::Q_STRIDE + step*32);
                    }
                },
                ring_k + stage*slot_k + k_at);
        });
        bias<T>(a, block, s, row_s, slope_s, m0, (block.first + (entry & ~PLAIN))*T::N, entry & PLAIN);
        bool exceeds = false;
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                exceeds |= largest(s, m, h) > high[m][h] + RAISE;
            }
        }
        if (__any_sync(0xFFFFFFFF, exceeds)) {
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float to = fmaxf(high[m][h], row_maximum(largest(s, m, h)));
                    const float f  = high[m][h] == -INFINITY ? 0.0f : exp2_of(high[m][h] - to);
                    high[m][h] = to;
                    sum[m][h] *= f;
#pragma unroll
                    for (int j = 0; j < T::FRAGMENTS; ++j) {
                        o[m][j][2*h] *= f;
                        o[m][j][2*h + 1] *= f;
                    }
                }
            }
        }
        uint32_t p[T::OWN_M][T::N/16][4];
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float at = high[m][h] == -INFINITY ? 0.0f : high[m][h];
#pragma unroll
                for (int n = 0; n < T::OWN_N; ++n) {
                    const float x = exp2_of(s[m][n][2*h] - at), y = exp2_of(s[m][n][2*h + 1] - at);
                    sum[m][h] += x + y;
                    p[m][n/2][n % 2*2 + h] = bits_of(__floats2half2_rn(x, y));
                }
            }
        }
        values.wait(stage);
        with_type<T::TYPE_V, T::D_V>(a.type_v, [&](auto type) {
            weigh<T, decltype(type)::value>(
                o,
                [&](uint32_t (&to)[4], int m, int step) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        to[j] = p[m][step][j];
                    }
                },
                ring_v + stage*slot_v + v_at, 0);
        });
        meet();
        const int next = i + STAGES*T::TEAMS;
        copy_both(keys, values, next < n_tiles, next < n_tiles ? tile_at(next) : 0, stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    if (n_tiles % T::TEAMS != 0 && team >= n_tiles % T::TEAMS) {
        if (!keys.bulk() || !values.bulk()) {
            meet();
        }
        meet();
    }
    dependents_may_start();
#pragma unroll
    for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float x = row_sum(sum[m][h]);
            if (t == 0) {
                stats_s[team*ROWS + m0 + 16*m + g + 8*h] = make_float2(high[m][h], x);
            }
        }
    }
    join_teams<T>(a, block, row_s, stats_s, joined_s, o_s, [&]() {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int   r = m0 + 16*m + g + 8*h;
                const float f = high[m][h] == -INFINITY ? 0.0f : exp2_of(high[m][h] - joined_s[r].x);
                if (row_s[r].y >= 0) {
                    with_type<T::TYPE_V, T::D_V>(a.type_v, [&](auto type) { write_row<decltype(type)::value>(o[m], h, f, o_s + (team*ROWS + r)*T::O_STRIDE, t); });
                }
            }
        }
    });
#endif
}

}  // namespace pyllm::verify
