// The verify kernels: a few query rows over a long cache, K and V read once as they are stored.
//
// A block has M rows of Q that share a KV head (query positions x query heads, position major), and a part of the KV rows that the mask leaves. Rings of
// slots have K and V tiles as stored, filled by asynchronous copies in the order K0 V0 K1 V1 ... There are two ways to share the work among the warps:
//
//   Tile   together: all divide a tile of N KV rows twice, for S = Q K^T by KV rows, for O += P V by columns of V; so each quant is decoded by one warp, or
//          of K by those that divide the rows of Q. P goes through shared memory as f16. One barrier for each tile: P and V are visible, K of the next
//          tile is, and the slots of K and of the V before are free.
//   Teams  each team has tiles of its own, and each of its warps whole rows of P, in registers. `Transposed` (transposed.cuh) has teams too.
//
// The softmax is taken against a reference maximum. It moves only when a score exceeds it by 2^RAISE; then O and the sums are scaled.
#pragma once

#include "fattn/verify/kv.cuh"
#include "fattn/verify/ring.cuh"

#include <type_traits>

namespace pyllm::verify {

struct Arguments {
    const char *  q;
    const char *  k;
    const char *  v;
    const char *  mask;   // f16 [n_kv, n_q, 1, mask_streams], or nullptr
    const float * sinks;  // [n_head], or nullptr
    float *       dst;    // [d_v, n_head, n_q, streams]
    half *        partial;  // [rows of dst, parts, d_v]
    float2 *      meta;     // [rows of dst, parts]: reference maximum in powers of two, sum
    Strides       at_q, at_k, at_v;
    int64_t       mask_row, mask_stream;
    int           n_q, n_kv, n_head, n_head_kv, gqa, mask_streams;
    int           row_tiles, parts;
    int           least, more;  // tiles of a part, and how many parts have one more
    int           type_k, type_v;
    int           width_k, width_v;  // of copies: 16, 8, 4, or 2 for ordinary loads
    Boxes         boxes_k, boxes_v;
    bool          q_vectors, mask_vectors;  // rows are aligned to 16 bytes
    uint64_t      per_gqa;                  // 2^32/gqa, rounded up
    float         scale;             // powers of two: times log2(e), and by the softcap
    float         softcap;           // times log2(e)
    float         max_bias, m0, m1;  // ALiBi
    uint32_t      n_head_log2;
};

constexpr float RAISE = 8.0f;

// An instance, see geometry.h. Where N/ROWS leaves warps over, these take other rows of Q, or wait.
template <int D_K_, int D_V_, int M_, int N_, int WARPS_, int ROWS_, int TYPE_K_, int TYPE_V_> struct Tile {
    static constexpr int D_K = D_K_, D_V = D_V_, M = M_, N = N_, WARPS = WARPS_, ROWS = ROWS_, TYPE_K = TYPE_K_, TYPE_V = TYPE_V_;
    static constexpr int THREADS = 32*WARPS;
    static constexpr int M_TILES = M/16;
    static constexpr int KV_WARPS = N/ROWS;
    static constexpr int M_SHARE = WARPS/KV_WARPS < M_TILES ? WARPS/KV_WARPS : M_TILES;
    static constexpr int M_WARPS = M_TILES % M_SHARE == 0 ? M_SHARE : 1;
    static constexpr int OWN_M = M_TILES/M_WARPS;  // of S
    static constexpr int OWN_N = ROWS/8;
    // Columns of V: a block of quants at least. Where these are fewer than the warps, several have the same and divide the tile's KV rows.
    static constexpr int SLICE = is_quantised(TYPE_V) && TYPE_V != ANY && D_V/WARPS < 32 ? 32 : D_V/WARPS;
    static constexpr int SLICES = D_V/SLICE, V_SHARES = WARPS/SLICES;
    static constexpr int FRAGMENTS = SLICE/8;
    static constexpr int OWN_O = M_TILES;          // of O
    // Long rows of K with few fragments: two sums instead of one, or each product waits for the one before.
    static constexpr bool TWO_SUMS = D_K >= 256 && OWN_M*OWN_N <= 2;
    static_assert(M % 16 == 0 && N % 16 == 0 && N % ROWS == 0 && ROWS % 8 == 0 && WARPS % KV_WARPS == 0 && M_TILES % M_WARPS == 0, "whole fragments");
    static_assert(D_V % SLICE == 0 && WARPS % SLICES == 0 && N % (16*V_SHARES) == 0 && D_K % 16 == 0, "whole fragments");
    static_assert(SLICE % (is_quantised(TYPE_V) && D_V % 32 == 0 ? 32 : 16) == 0, "whole blocks");
    static_assert(ROWS >= 16 || D_K % 32 == 0, "eight rows are loaded with 32 columns");
    static constexpr int HEADS = 1;
    static constexpr float Q_FIRST = 1.0f, Q_LAST = 1.0f;  // factors of Q, see raw.cuh
    static constexpr int Q_STRIDE = 2*D_K + 16;  // bytes; odd multiples of 16
    static constexpr int P_STRIDE = 2*N + 16;
    static constexpr int O_STRIDE = D_V + 16;  // floats; what joins warps that have the same columns of V
};

// An instance whose block has several teams of warps, each with tiles and rings of its own. A tile has HEADS neighbouring KV heads, whose rows lie side by
// side; the warps of a team divide them and the rows of Q. Each has whole rows of P, in registers, and of O.
template <int D_K_, int D_V_, int M_, int N_, int WARPS_, int TEAMS_, int HEADS_, int TYPE_K_, int TYPE_V_> struct Teams {
    static constexpr int  D_K = D_K_, D_V = D_V_, M = M_, N = N_, WARPS = WARPS_, TEAMS = TEAMS_, HEADS = HEADS_, TYPE_K = TYPE_K_, TYPE_V = TYPE_V_;
    static constexpr int  THREADS = 32*WARPS;
    static constexpr int  MATES = WARPS/TEAMS, OF_HEAD = MATES/HEADS;
    static constexpr int  OWN_M = M/16/OF_HEAD, OWN_O = OWN_M;
    // Q stays in registers where these last for it beside O. Beside what decodes quants they do not.
    static constexpr bool HELD = !is_quantised(TYPE_K) && TYPE_K != ANY && OWN_M*(D_K/4 + D_V/2) <= 96;
    static constexpr int  OWN_N = N/8;
    static constexpr int  SLICE = D_V, FRAGMENTS = D_V/8, V_SHARES = 1;
    static constexpr bool TWO_SUMS = false;
    static constexpr int  Q_STRIDE = 2*D_K + 16;
    static constexpr float Q_FIRST = 1.0f, Q_LAST = 1.0f;
    static constexpr int  SETS = TEAMS;          // of maxima and sums
    static constexpr int  O_STRIDE = D_V + 8;  // floats; what joins the teams
    static_assert(MATES % HEADS == 0 && M % (16*OF_HEAD) == 0 && WARPS % TEAMS == 0 && N % 16 == 0 && D_K % 16 == 0 && D_V % 16 == 0, "whole fragments");
    static_assert(TEAMS < 16, "a barrier for each team");
};

// S += Q K^T for this warp's rows of Q and 8 OWN_N rows of K from `k` on. `q(fragment, m, step)` gives rows 16m.. and columns 16 step.. of Q.
template <class T, int TYPE, class Q> static __device__ __forceinline__ void score(float (&s)[T::OWN_M][T::OWN_N][4], Q && q, const char * k) {
    constexpr int stride = tile_stride(TYPE, T::D_K*T::HEADS);
    const int     lane   = threadIdx.x % 32;
    float         more[T::OWN_M][T::OWN_N][4] = {};  // the odd steps' sums, where there are two
    const auto    sum_of = [&](int step) -> auto & { return T::TWO_SUMS && step % 2 == 1 ? more : s; };
    if constexpr (is_quantised(TYPE)) {
        const int    g   = lane/4, t = lane % 4;
        const char * row = k + g*stride;
        const auto   block = [&](int b, auto odd) {
            uint32_t fragment[T::OWN_N][4];
#pragma unroll
            for (int n = 0; n < T::OWN_N; ++n) {
                load_k<TYPE, decltype(odd)::value>(row + 8*n*stride, b, t, fragment[n]);
            }
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    uint32_t a[4];
                    q(a, m, 2*b + step);
#pragma unroll
                    for (int n = 0; n < T::OWN_N; ++n) {
                        multiply_add(sum_of(step)[m][n], a, fragment[n][2*step], fragment[n][2*step + 1]);
                    }
                }
            }
        };
#pragma unroll 4
        for (int b = 0; b < T::D_K/32 - 1; b += 2) {
            block(b, std::false_type());
            block(b + 1, std::true_type());
        }
        if constexpr (T::D_K/32 % 2 == 1) {
            block(T::D_K/32 - 1, std::false_type());
        }
    } else if constexpr (T::OWN_N == 1) {
        const uint32_t row = shared_address(k) + lane % 8*stride + lane/8*16;
#pragma unroll 8
        for (int step = 0; step < T::D_K/16; step += 2) {
            uint32_t b[4];
            load_matrices(b, row + step*32);
            as_f16<TYPE>(b);
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
                uint32_t a[4];
                q(a, m, step);
                multiply_add(sum_of(0)[m][0], a, b[0], b[1]);
                q(a, m, step + 1);
                multiply_add(sum_of(1)[m][0], a, b[2], b[3]);
            }
        }
    } else {
        const uint32_t row = shared_address(k) + (lane % 8 + lane/16*8)*stride + lane/8 % 2*16;
#pragma unroll 8
        for (int step = 0; step < T::D_K/16; ++step) {
            uint32_t b[T::OWN_N/2][4];
#pragma unroll
            for (int n = 0; n < T::OWN_N/2; ++n) {
                load_matrices(b[n], row + n*16*stride + step*32);
                as_f16<TYPE>(b[n]);
            }
#pragma unroll
            for (int m = 0; m < T::OWN_M; ++m) {
                uint32_t a[4];
                q(a, m, step);
#pragma unroll
                for (int n = 0; n < T::OWN_N/2; ++n) {
                    multiply_add(sum_of(step)[m][2*n], a, b[n][0], b[n][1]);
                    multiply_add(sum_of(step)[m][2*n + 1], a, b[n][2], b[n][3]);
                }
            }
        }
    }
    if constexpr (T::TWO_SUMS) {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int n = 0; n < T::OWN_N; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[m][n][e] += more[m][n][e];
                }
            }
        }
    }
}

// O += P V for this warp's rows of V from `v` on and its columns, the `slice`th share of them. `p(fragment, m, step)` gives rows 16m.. and columns 16 step..
// of P.
template <class T, int TYPE, class P>
static __device__ __forceinline__ void weigh(float (&o)[T::OWN_O][T::FRAGMENTS][4], P && p, const char * v, int slice) {
    constexpr int stride = tile_stride(TYPE, T::D_V*T::HEADS);
    const int     lane   = threadIdx.x % 32;
    const int     g = lane/4, t = lane % 4;
#pragma unroll
    for (int step = 0; step < T::N/16/T::V_SHARES; ++step) {
        uint32_t a[T::OWN_O][4];
#pragma unroll
        for (int m = 0; m < T::OWN_O; ++m) {
            p(a[m], m, step);
        }
        if constexpr (is_quantised(TYPE)) {
            const char * row = v + (16*step + 2*t)*stride;
#pragma unroll
            for (int b = 0; b < T::SLICE/32; ++b) {
                uint32_t near[4], far[4];
                load_v<TYPE>(row, row + stride, slice*(T::SLICE/32) + b, g, near);
                load_v<TYPE>(row + 8*stride, row + 9*stride, slice*(T::SLICE/32) + b, g, far);
#pragma unroll
                for (int m = 0; m < T::OWN_O; ++m) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        multiply_add(o[m][4*b + j], a[m], near[j], far[j]);
                    }
                }
            }
        } else {
            const uint32_t row = shared_address(v) + (16*step + lane % 16)*stride + lane/16*16 + slice*T::SLICE*2;
#pragma unroll
            for (int f = 0; f < T::FRAGMENTS; f += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, row + f*16);
                as_f16<TYPE>(b);
#pragma unroll
                for (int m = 0; m < T::OWN_O; ++m) {
                    multiply_add(o[m][f], a[m], b[0], b[1]);
                    multiply_add(o[m][f + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
}

// Calls `f` with the type as a constant: the one of the instance, or the node's among those that the head dim can have.
template <int TYPE, int D, class F> static __device__ __forceinline__ void with_type(int type, F && f) {
    if constexpr (TYPE != ANY) {
        f(std::integral_constant<int, TYPE>());
    } else {
        if constexpr (D % 32 == 0) {
            switch (type) {
                case Q8_0:   return f(std::integral_constant<int, Q8_0>());
                case Q5_1:   return f(std::integral_constant<int, Q5_1>());
                case Q5_0:   return f(std::integral_constant<int, Q5_0>());
                case Q4_1:   return f(std::integral_constant<int, Q4_1>());
                case Q4_0:   return f(std::integral_constant<int, Q4_0>());
                case IQ4_NL: return f(std::integral_constant<int, IQ4_NL>());
                default: break;
            }
        }
        if (type == BF16) {
            f(std::integral_constant<int, BF16>());
        } else {
            f(std::integral_constant<int, F16>());
        }
    }
}

}  // namespace pyllm::verify
