// The kernel that joins the parts of a node.
#pragma once

#include "fattn/verify/ptx.cuh"

#include <cmath>

namespace pyllm::verify {

constexpr int JOIN_THREADS = 256;

// One block per row of the result: threads are D_V/4 columns of four, times groups that share the parts.
template <int D_V>
__launch_bounds__(JOIN_THREADS) __global__ void join(const float * partial, const float2 * meta, const float * sinks, float * dst,
                                                     const int n_head, const int parts) {
    constexpr int COLUMNS = D_V/4;
    constexpr int GROUPS  = JOIN_THREADS/COLUMNS;
    constexpr int AHEAD   = 8;
    extern __shared__ float weight_s[];  // [parts]
    __shared__ float4 sum_s[GROUPS][COLUMNS];
    __shared__ float  inverse_s;
    const int     c = threadIdx.x % COLUMNS, group = threadIdx.x/COLUMNS;
    const int64_t row = blockIdx.x;
    const float4 * const from = (const float4 *) (partial + row*parts*D_V) + c;
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
                x[u] = from[p*COLUMNS];
            }
        }
    };
    load(group);
    if (threadIdx.x < 32) {
        const float sink = sinks != nullptr ? 1.44269504f*sinks[row % n_head] : -INFINITY;
        float       top  = fmaxf(sink, -1e30f);
#pragma unroll 4
        for (int p = threadIdx.x; p < parts; p += 32) {
            top = fmaxf(top, meta[row*parts + p].x);
        }
        for (int i = 16; i > 0; i /= 2) {
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, i));
        }
        float total = 0.0f;
#pragma unroll 4
        for (int p = threadIdx.x; p < parts; p += 32) {
            const float2 m = meta[row*parts + p];
            weight_s[p] = exp2_of(m.x - top);
            total += m.y*weight_s[p];
        }
        for (int i = 16; i > 0; i /= 2) {
            total += __shfl_xor_sync(0xFFFFFFFF, total, i);
        }
        total += exp2_of(sink - top);
        if (threadIdx.x == 0) {
            inverse_s = total > 0.0f ? 1.0f/total : 0.0f;
        }
    }
    __syncthreads();
    float4 sum = {};
    for (int p0 = group; p0 < parts; p0 += AHEAD*GROUPS) {
        if (p0 != group) {
            load(p0);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int   p = p0 + u*GROUPS;
            const float w = group < GROUPS && p < parts ? weight_s[p] : 0.0f;
            if (w > 0.0f) {  // a part that saw nothing
                sum.x += w*x[u].x;
                sum.y += w*x[u].y;
                sum.z += w*x[u].z;
                sum.w += w*x[u].w;
            }
        }
    }
    if (group < GROUPS) {
        sum_s[group][c] = sum;
    }
    __syncthreads();
    if (group == 0) {
#pragma unroll
        for (int i = 1; i < GROUPS; ++i) {
            const float4 y = sum_s[i][c];
            sum.x += y.x;
            sum.y += y.y;
            sum.z += y.z;
            sum.w += y.w;
        }
        const float inverse = inverse_s;
        ((float4 *) (dst + row*D_V))[c] = make_float4(sum.x*inverse, sum.y*inverse, sum.z*inverse, sum.w*inverse);
    }
}

}  // namespace pyllm::verify
