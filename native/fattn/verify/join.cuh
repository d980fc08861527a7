// The kernel that joins the parts of a node.
#pragma once

#include "fattn/verify/geometry.h"
#include "fattn/verify/ptx.cuh"

#include <cmath>

namespace pyllm::verify {

constexpr int JOIN_THREADS = 256;
constexpr int JOIN_AHEAD   = 5;  // parts that a thread has under way
constexpr int JOIN_PARTS   = 4096;  // whose maxima and sums it has in shared memory, 8 bytes each

// Columns of the result that a block of `join` makes: fewer where there are more parts than its threads have under way otherwise.
PYLLM_BOTH constexpr int join_columns(int d_v, int parts) {
    return d_v < 128 ? d_v : JOIN_THREADS/(128/4)*JOIN_AHEAD >= parts ? 128 : 64;
}

// The larger of two floats as integers that compare as they do.
static __device__ __forceinline__ float largest_in_warp(float x) {
    const int bits = __float_as_int(x);
    const int most = __reduce_max_sync(0xFFFFFFFF, bits >= 0 ? bits : bits ^ 0x7FFFFFFF);
    return __int_as_float(most >= 0 ? most : most ^ 0x7FFFFFFF);
}

// A block for each row of the result and WIDTH columns of it: threads are columns of four, times groups that share the parts. It takes few registers, so that
// the kernel after it finds room beside it.
template <int D_V, int WIDTH>
__launch_bounds__(JOIN_THREADS, 6) __global__ void join(const half * partial, const float2 * meta, const float * sinks, float * dst,
                                                        const int n_head, const int parts) {
#if __CUDA_ARCH__ >= 800
    constexpr int COLUMNS = WIDTH/4;
    constexpr int GROUPS  = JOIN_THREADS/COLUMNS;
    extern __shared__ float2 noted_s[];  // [parts]: their reference maxima and sums
    __shared__ float4 sum_s[GROUPS][COLUMNS];
    __shared__ float  total_s[GROUPS];
    const int     c = threadIdx.x % COLUMNS, group = threadIdx.x/COLUMNS, lane = threadIdx.x % 32;
    const int     column = blockIdx.y*COLUMNS + c;
    const int64_t row    = blockIdx.x;
    const uint2 * const from = (const uint2 *) (partial + row*parts*D_V) + column;
    dependents_may_start();
    // No pointer of this kernel is __restrict__: what is known not to change would be loaded before this.
    wait_for_predecessor();
    // The first parts are under way while their weights are found.
    uint2 x[JOIN_AHEAD];
    const auto load = [&](int p0) {
#pragma unroll
        for (int u = 0; u < JOIN_AHEAD; ++u) {
            const int p = p0 + u*GROUPS;
            if (group < GROUPS && p < parts) {
                x[u] = from[p*(D_V/4)];
            }
        }
    };
    load(group);
#pragma unroll 1  // what runs once is bound by the instructions that it has to fetch
    for (int p = threadIdx.x; p < parts; p += JOIN_THREADS) {
        noted_s[p] = meta[row*parts + p];
    }
    __syncthreads();
    const float sink = sinks != nullptr ? 1.44269504f*sinks[blockIdx.x % (uint32_t) n_head] : -INFINITY;
    float       top  = fmaxf(sink, -1e30f);
#pragma unroll 1
    for (int p = lane; p < parts; p += 32) {
        top = fmaxf(top, noted_s[p].x);
    }
    top = largest_in_warp(top);
    float4 sum   = {};
    float  total = 0.0f;
#pragma unroll 1
    for (int p0 = group; p0 < parts; p0 += JOIN_AHEAD*GROUPS) {
        if (p0 != group) {
            load(p0);
        }
#pragma unroll
        for (int u = 0; u < JOIN_AHEAD; ++u) {
            const int    p     = p0 + u*GROUPS;
            const float2 noted = group < GROUPS && p < parts ? noted_s[p] : make_float2(-INFINITY, 0.0f);
            const float  w     = noted.y*exp2_of(noted.x - top);
            if (w > 0.0f) {  // else a part that saw nothing
                const float2 low = __half22float2(half2_of(x[u].x)), high = __half22float2(half2_of(x[u].y));
                total += w;
                sum.x += w*low.x;
                sum.y += w*low.y;
                sum.z += w*high.x;
                sum.w += w*high.y;
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
