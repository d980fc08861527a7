// Q, from memory into shared memory.
#pragma once

#include "fattn/verify/tile.cuh"

namespace pyllm::verify {

// Rows of Q into shared memory, scaled, as f16 and in the order of K's columns. `load` begins, `store` ends a batch.
template <class T> struct Queries {
    static constexpr int VECTORS = T::M*T::D_K/4;
    static constexpr int EACH    = (VECTORS + T::THREADS - 1)/T::THREADS;
    static constexpr int BATCH   = EACH < 8 ? EACH : 8;
    float4 x[BATCH];

    __device__ __forceinline__ void load(const Arguments & a, const char * q, int row0, int rows, int first_head, int first) {
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const int i = threadIdx.x + (first + u)*T::THREADS;
            x[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (i < VECTORS) {
                const int r = i/(T::D_K/4), c = i % (T::D_K/4)*4;
                if (r < rows) {
                    const int     position = (int) ((row0 + r)*a.per_gqa >> 32);
                    const int     head     = first_head + row0 + r - position*a.gqa;
                    const float * from = (const float *) (q + position*a.at_q.row + head*a.at_q.head) + c;
                    x[u] = a.q_vectors ? *(const float4 *) from : make_float4(from[0], from[1], from[2], from[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(const Arguments & a, char * q_s, int first, bool permuted) const {
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const int i = threadIdx.x + (first + u)*T::THREADS;
            if (i < VECTORS) {
                const int r = i/(T::D_K/4), c = i % (T::D_K/4)*4;
                const float4 y = make_float4(x[u].x*a.scale, x[u].y*a.scale, x[u].z*a.scale, x[u].w*a.scale);
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
