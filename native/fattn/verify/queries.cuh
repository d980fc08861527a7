// Q, from memory into shared memory.
#pragma once

#include "fattn/verify/tile.cuh"

namespace pyllm::verify {

// Rows of Q into shared memory, scaled, as f16 and in the order of K's columns. `load` begins, `store` ends a batch.
template <class T> struct Queries {
    static constexpr int  ROW = T::D_K/4;  // vectors
    static constexpr int  ROWS = T::HEADS*T::M;
    static constexpr int  EACH = (ROWS*ROW + T::THREADS - 1)/T::THREADS;
    static constexpr int  BATCH = (EACH + (EACH + 15)/16 - 1)/((EACH + 15)/16);  // at most 16
    static constexpr bool REGULAR = T::THREADS % ROW == 0;  // a thread has one column of vectors
    static constexpr bool WHOLE = ROWS*ROW % (BATCH*T::THREADS) == 0;
    float4 x[BATCH];

    static __device__ __forceinline__ int row_of(int u) { return REGULAR ? threadIdx.x/ROW + u*(T::THREADS/ROW) : (threadIdx.x + u*T::THREADS)/ROW; }
    static __device__ __forceinline__ int column_of(int u) { return 4*(REGULAR ? threadIdx.x % ROW : (threadIdx.x + u*T::THREADS) % ROW); }

    __device__ __forceinline__ void load(const Arguments & a, const char * q, const int2 * row_s, int first) {
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const int r = row_of(first + u);
            x[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (WHOLE || r < ROWS) {
                const int2 at = row_s[r];
                if (at.y >= 0) {
                    const float * from = (const float *) (q + at.x*a.at_q.row + at.y*a.at_q.head) + column_of(first + u);
                    x[u] = a.q_vectors ? *(const float4 *) from : make_float4(from[0], from[1], from[2], from[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(const Arguments & a, char * q_s, int first, bool permuted) const {
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const int r = row_of(first + u), c = column_of(first + u);
            if (WHOLE || r < ROWS) {
                const float  by = a.scale*(c % 32 < 16 ? T::Q_FIRST : T::Q_LAST);
                const float4 y = make_float4(x[u].x*by, x[u].y*by, x[u].z*by, x[u].w*by);
                half * const to = (half *) (q_s + r*T::Q_STRIDE);
                if (permuted) {
                    *(half2 *) (to + k_column(true, c))     = __floats2half2_rn(y.x, y.z);
                    *(half2 *) (to + k_column(true, c + 1)) = __floats2half2_rn(y.y, y.w);
                } else {
                    *(half2 *) (to + c)     = __floats2half2_rn(y.x, y.y);
                    *(half2 *) (to + c + 2) = __floats2half2_rn(y.z, y.w);
                }
            }
        }
    }
};

}  // namespace pyllm::verify
