// Index lists for the sparse route: for each group of query rows the KV rows that at least one of them may see.
#include "common.cuh"

#include <algorithm>

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
void ggml_cuda_flash_attn_ext_compact_mask(const ggml_tensor *, int32_t *, int32_t *, int32_t, int32_t, int32_t, cudaStream_t) {
    GGML_ABORT("the sparse route is compiled for NVIDIA alone, and the route table sends nothing else there");
}
#else

namespace {

constexpr int THREADS = 256;
constexpr int WARPS   = THREADS / 32;
constexpr int SPAN    = 4;  // ballots of a warp before the warps' counts are summed

// One block per list: blockIdx.x is the group, blockIdx.y the stream. Lists are padded with -1 to `capacity`.
__global__ void compact(const half * __restrict__ mask, int32_t * __restrict__ lists, int32_t * __restrict__ counts, const int n_kv, const int n_q,
                        const int group, const int capacity, const int64_t row_stride, const int64_t stream_stride) {
    const int     lane  = threadIdx.x % 32;
    const int     warp  = threadIdx.x / 32;
    const int     begin = blockIdx.x*group;
    const int     rows  = min(group, n_q - begin);
    const half *  first = mask + blockIdx.y*stream_stride + begin*row_stride;
    const int64_t index = (int64_t) blockIdx.y*gridDim.x + blockIdx.x;
    int32_t *     list  = lists + index*capacity;

    __shared__ int warp_count[WARPS];
    int found = 0;  // in all columns before this step; the same for every thread
    for (int step = 0; step < n_kv; step += THREADS*SPAN) {
        uint32_t seen[SPAN];
        int      own = 0;
#pragma unroll
        for (int s = 0; s < SPAN; ++s) {
            const int column  = step + (warp*SPAN + s)*32 + lane;
            bool      visible = false;
            for (int r = 0; column < n_kv && r < rows && !visible; ++r) {
                visible = !__hisinf(first[r*row_stride + column]);
            }
            seen[s] = __ballot_sync(0xFFFFFFFF, visible);
            own += __popc(seen[s]);
        }
        if (lane == 0) {
            warp_count[warp] = own;
        }
        __syncthreads();
        int place = found;
        for (int w = 0; w < WARPS; ++w) {
            place += w < warp ? warp_count[w] : 0;
            found += warp_count[w];
        }
        __syncthreads();
#pragma unroll
        for (int s = 0; s < SPAN; ++s) {
            const int mine = place + __popc(seen[s] & ((1u << lane) - 1));
            if ((seen[s] >> lane & 1) && mine < capacity) {
                list[mine] = step + (warp*SPAN + s)*32 + lane;
            }
            place += __popc(seen[s]);
        }
    }
    found = min(found, capacity);
    for (int i = found + threadIdx.x; i < capacity; i += THREADS) {
        list[i] = -1;
    }
    if (threadIdx.x == 0) {
        counts[index] = found;
    }
}

}  // namespace

// Upstream's launcher of the gathering kernel calls this; `indices` holds a list of n_kv_max for each stream and group, `counts` their lengths.
void ggml_cuda_flash_attn_ext_compact_mask(const ggml_tensor * mask, int32_t * indices, int32_t * counts, int32_t n_queries, int32_t ncols1, int32_t n_kv_max,
                                           cudaStream_t stream) {
    const dim3 grid((n_queries + ncols1 - 1) / ncols1, mask->ne[3]);
    compact<<<grid, THREADS, 0, stream>>>((const half *) mask->data, indices, counts, (int) mask->ne[0], n_queries, ncols1, n_kv_max,
                                          (int64_t) (mask->nb[1] / sizeof(half)), (int64_t) (mask->nb[3] / sizeof(half)));
    CUDA_CHECK(cudaGetLastError());
}
#endif  // NVIDIA
