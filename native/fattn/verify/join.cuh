// The kernel that joins the parts of a node.
#pragma once

#include "fattn/verify/geometry.h"
#include "fattn/verify/ptx.cuh"

#include <cmath>

namespace pyllm::verify {

constexpr int JOIN_THREADS = 256;

// Columns of the result that a block of `join` makes.
PYLLM_BOTH constexpr int join_columns(int d_v) {
    return d_v < 128 ? d_v : 128;
}

// The larger of two floats as integers that compare as they do.
static __device__ __forceinline__ float largest_in_warp(float x) {
    const int bits = __float_as_int(x);
    const int most = __reduce_max_sync(0xFFFFFFFF, bits >= 0 ? bits : bits ^ 0x7FFFFFFF);
    return __int_as_float(most >= 0 ? most : most ^ 0x7FFFFFFF);
}

// A block for each row of the result and `join_columns` of it: threads are columns of four, times groups that share the parts. It takes few registers, so
// that the kernel after it finds room beside it.
template <int D_V>
__launch_bounds__(JOIN_THREADS, 6) __global__ void join(const float * partial, const float2 * meta, const float * sinks, float * dst,
                                                        const int n_head, const int parts) {
#if __CUDA_ARCH__ >= 800
    constexpr int COLUMNS = join_columns(D_V)/4;
    constexpr int GROUPS  = JOIN_THREADS/COLUMNS;
    constexpr int AHEAD   = 4;
    extern __shared__ float2 noted_s[];  // [parts]: their reference maxima and sums
    __shared__ float4 sum_s[GROUPS][COLUMNS];
    __shared__ float  total_s[GROUPS];
    const int     c = threadIdx.x % COLUMNS, group = threadIdx.x/COLUMNS, lane = threadIdx.x % 32;
    const int     column = blockIdx.y*COLUMNS + c;
    const int64_t row    = blockIdx.x;
    const float4 * const from = (const float4 *) (partial + row*parts*D_V) + column;
    dependents_may_start();
    // No pointer of this kernel is __restrict__: what is known not to change would be loaded before this.
    wait_for_predecessor();
    // The first parts are under way while their weights are found.
    float4 x[AHEAD];
    const auto load = [&](int p0) {
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int p = p0 + u*GROUPS;
            if (group < GROUPS && p < parts) {
                x[u] = from[p*(D_V/4)];
            }
        }
    };
    load(group);
    for (int p = threadIdx.x; p < parts; p += JOIN_THREADS) {
        noted_s[p] = meta[row*parts + p];
    }
    __syncthreads();
    const float sink = sinks != nullptr ? 1.44269504f*sinks[row % n_head] : -INFINITY;
    float       top  = fmaxf(sink, -1e30f);
    for (int p = lane; p < parts; p += 32) {
        top = fmaxf(top, noted_s[p].x);
    }
    top = largest_in_warp(top);
    float4 sum   = {};
    float  total = 0.0f;
    for (int p0 = group; p0 < parts; p0 += AHEAD*GROUPS) {
        if (p0 != group) {
            load(p0);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int    p     = p0 + u*GROUPS;
            const float2 noted = group < GROUPS && p < parts ? noted_s[p] : make_float2(-INFINITY, 0.0f);
            const float  w     = exp2_of(noted.x - top);
            if (w > 0.0f) {  // a part that saw nothing
                total += w*noted.y;
                sum.x += w*x[u].x;
                sum.y += w*x[u].y;
                sum.z += w*x[u].z;
                sum.w += w*x[u].w;
            }
        }
    }
    if (group < GROUPS) {
        sum_s[group][c] = sum;
        if (c == 0) {
            total_s[group] = total;
        }
    }
    __syncthreads();
    if (group == 0) {
        total += exp2_of(sink - top);
#pragma unroll
        for (int i = 1; i < GROUPS; ++i) {
            const float4 y = sum_s[i][c];
            sum.x += y.x;
            sum.y += y.y;
            sum.z += y.z;
            sum.w += y.w;
            total += total_s[i];
        }
        const float inverse = total > 0.0f ? 1.0f/total : 0.0f;
        ((float4 *) (dst + row*D_V))[column] = make_float4(sum.x*inverse, sum.y*inverse, sum.z*inverse, sum.w*inverse);
    }
#endif
}

}  // namespace pyllm::verify
