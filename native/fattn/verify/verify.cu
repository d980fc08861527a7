// Launches of the verify route.
#include "fattn/verify/verify.cuh"

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
void pyllm_fattn_verify(ggml_backend_cuda_context &, ggml_tensor *) {
    GGML_ABORT("the verify route is compiled for NVIDIA alone, and the route table sends nothing else there");
}
#else
#include "fattn/verify/join.cuh"
#include "fattn/verify/kernel_of.cuh"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>

// dispatch.cu: notes that a kernel has no room on the device, and says so.
bool pyllm_fattn_no_room(int blocks_per_sm);

namespace pyllm::verify {

static int type_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_BF16:   return BF16;
        case GGML_TYPE_Q8_0:   return Q8_0;
        case GGML_TYPE_Q5_1:   return Q5_1;
        case GGML_TYPE_Q5_0:   return Q5_0;
        case GGML_TYPE_Q4_1:   return Q4_1;
        case GGML_TYPE_Q4_0:   return Q4_0;
        case GGML_TYPE_IQ4_NL: return IQ4_NL;
        default:               return F16;
    }
}

static kernel_t kernel_at(const Instance & one, int place) {
#define VERIFY_HEAD(D_K, D_V)                   \
    if (one.d_k == D_K && one.d_v == D_V) {     \
        return kernel_of<D_K, D_V>(place);      \
    }
#include "fattn/verify/heads.inc"
#undef VERIFY_HEAD
    return nullptr;
}

typedef void (*join_t)(const half *, const float2 *, const float *, float *, int, int);

static join_t join_of(int64_t d_v, int parts) {
#define VERIFY_HEAD(D_K, D_V)                                                                                       \
    if (d_v == D_V) {                                                                                               \
        constexpr int few = join_columns(D_V, 1), many = join_columns(D_V, INT_MAX);                                \
        return join_columns(D_V, parts) == few ? join<D_V, few> : join<D_V, many>;                                  \
    }
#include "fattn/verify/heads.inc"
#undef VERIFY_HEAD
    return nullptr;
}

// Bytes that an asynchronous copy of the rows of `t` may move at once; 2: none, its addresses are not multiples of four.
static int copy_width(const ggml_tensor * t) {
    const uintptr_t place = (uintptr_t) t->data | (t->ne[2] > 1 ? t->nb[2] : 0) | (t->ne[3] > 1 ? t->nb[3] : 0);
    const uintptr_t row   = t->ne[1] > 1 ? t->nb[1] : 0;
    const uintptr_t bytes = ggml_row_size(t->type, t->ne[0]);
    // Sixteen at a time from a multiple of sixteen at or before the row's begin. That is a multiple of what divides the row, for which `tile_stride` has
    // room, and of four, at which quants are read; a tile of f16 lies at one of sixteen. Offsets within a tile of up to 256 rows have 32 bits.
    const uintptr_t begin = ggml_is_quantized(t->type) ? std::clamp<uintptr_t>(bytes & -bytes, 4, 16) : 16;
    if (row % 16 == 0 && place % begin == 0 && row < (1u << 24)) {
        return 16;
    }
    const uintptr_t bits = place | row | bytes;
    return bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 2;
}

// How many of its heads lie side by side, from a multiple of 16 bytes on: `tile_stride` of several has no room for another begin.
static int beside(const ggml_tensor * t) {
    const uintptr_t place = (uintptr_t) t->data | (t->ne[3] > 1 ? t->nb[3] : 0);
    return t->nb[2] == ggml_row_size(t->type, t->ne[0]) && place % 16 == 0 ? (int) t->ne[2] : 1;
}

// A map for the copy engine of boxes of `rows` rows of `heads` heads; no bytes where it does not take the tensor: it is copied in pieces of 16 bytes then,
// or less.
static Boxes boxes_of(const ggml_tensor * t, int type, int rows, int heads) {
    Boxes boxes{};
    static const auto encode = [] {
        void *                          found = nullptr;
        cudaDriverEntryPointQueryResult result{};
        const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
        return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (decltype(&cuTensorMapEncodeTiled)) found : nullptr;
    }();
    const bool   within  = t->ne[2] == 1 || t->nb[2] < t->nb[1];  // heads lie side by side in a row
    const size_t bytes   = row_bytes(type, (int) t->ne[0]) + (within ? (t->ne[2] - 1)*t->nb[2] : 0);
    const size_t element = bytes % 8 == 0 ? 8 : 4;
    const size_t stride  = tile_stride(type, heads*(int) t->ne[0]);
    const auto   whole   = [](size_t n) { return n % 16 == 0; };
    if (encode == nullptr || copy_width(t) != 16 || bytes % element != 0 || stride/element > 256 || !whole((uintptr_t) t->data) || (!within && !whole(t->nb[2])) ||
        (t->ne[3] > 1 && !whole(t->nb[3])) || t->nb[1] < bytes) {
        return boxes;
    }
    const cuuint64_t sizes[]   = { bytes/element, (cuuint64_t) t->ne[1], within ? 1 : (cuuint64_t) t->ne[2], (cuuint64_t) t->ne[3] };
    const cuuint64_t strides[] = { t->nb[1], within ? t->nb[1] : t->nb[2], t->ne[3] > 1 ? t->nb[3] : t->nb[1] };
    const cuuint32_t box[]     = { (cuuint32_t) (stride/element), (cuuint32_t) rows, 1, 1 };
    const cuuint32_t steps[]   = { 1, 1, 1, 1 };
    if (encode(&boxes.map, element == 8 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT64 : CU_TENSOR_MAP_DATA_TYPE_UINT32, 4, t->data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS) {
        boxes.per_head = within ? (int32_t) t->nb[2] : 0;
        boxes.element  = element == 8 ? 3 : 2;
        boxes.bytes    = (int32_t) (rows*stride);
    }
    return boxes;
}

static Strides strides_of(const ggml_tensor * t) {
    return { (int64_t) t->nb[1], (int64_t) t->nb[2], (int64_t) t->nb[3] };
}

static bool vectors(const ggml_tensor * t) {
    return ((uintptr_t) t->data | t->nb[1] | t->nb[2] | t->nb[3]) % 16 == 0;
}

static Arguments arguments_of(const ggml_tensor * dst) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3], *sinks = dst->src[4];
    Arguments a{};
    a.q         = (const char *) q->data;
    a.k         = (const char *) k->data;
    a.v         = (const char *) v->data;
    a.sinks     = sinks != nullptr ? (const float *) sinks->data : nullptr;
    a.dst       = (float *) dst->data;
    a.at_q      = strides_of(q);
    a.at_k      = strides_of(k);
    a.at_v      = strides_of(v);
    a.n_q       = (int) q->ne[1];
    a.n_kv      = (int) k->ne[1];
    a.n_head    = (int) q->ne[2];
    a.n_head_kv = (int) k->ne[2];
    a.gqa       = a.n_head/a.n_head_kv;
    a.per_gqa   = ((uint64_t(1) << 32) + a.gqa - 1)/a.gqa;
    a.type_k    = type_of(k->type);
    a.type_v    = type_of(v->type);
    a.width_k   = copy_width(k);
    a.width_v   = copy_width(v);
    a.q_vectors = vectors(q);
    if (mask != nullptr) {
        a.mask         = (const char *) mask->data;
        a.mask_row     = mask->nb[1];
        a.mask_stream  = mask->nb[3];
        a.mask_streams = (int) mask->ne[3];
        a.mask_vectors = vectors(mask);
    } else {
        a.mask_streams = 1;
    }
    constexpr float log2e = 1.44269504f;
    float scale, softcap;
    memcpy(&scale, (const float *) dst->op_params + 0, sizeof(float));
    memcpy(&a.max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&softcap, (const float *) dst->op_params + 2, sizeof(float));
    a.scale       = log2e*(softcap != 0.0f ? scale/softcap : scale);
    a.softcap     = log2e*softcap;
    a.n_head_log2 = 1;
    while (2*a.n_head_log2 <= (uint32_t) a.n_head) {
        a.n_head_log2 *= 2;
    }
    a.m0 = powf(2.0f, -a.max_bias/a.n_head_log2);
    a.m1 = powf(2.0f, -a.max_bias/2.0f/a.n_head_log2);
    return a;
}

// How many blocks of the kernel a multiprocessor holds, asked of the driver once; and the kernel may have all the shared memory there is from then on.
static int resident_blocks(int device, kernel_t kernel, int place, int type_k, int type_v, size_t shared) {
    static std::atomic<int16_t> known[GGML_CUDA_MAX_DEVICES][N_INSTANCES][ANY*ANY];  // one more than the number; 0: not asked yet
    std::atomic<int16_t> &      found = known[device][place][type_k*ANY + type_v];
    if (found == 0) {
        cudaFuncAttributes attributes{};
        int                blocks = 0;
        CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) (ggml_cuda_info().devices[device].smpbo - attributes.sharedSizeBytes)));
        CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32*INSTANCES[place].warps, shared));
        found = (int16_t) (blocks + 1);
    }
    return found - 1;
}

}  // namespace pyllm::verify

void pyllm_fattn_verify(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    using namespace pyllm::verify;
    const auto &  device  = ggml_cuda_info().devices[ctx.device];
    const int64_t d_k     = dst->src[1]->ne[0], d_v = dst->src[2]->ne[0], streams = dst->src[0]->ne[3];
    Arguments     a       = arguments_of(dst);
    const long    rows    = (long) a.n_q*a.gqa;
    const int     place   = choose((int) d_k, (int) d_v, a.type_k, a.type_v, rows, (int) device.smpbo, std::gcd(beside(dst->src[1]), beside(dst->src[2])));
    if (place < 0) {
        pyllm_fattn_no_room(0);
        return;
    }
    const Instance & one      = INSTANCES[place];
    const size_t     shared   = shared_bytes(one, a.type_k, a.type_v);
    const kernel_t   kernel   = kernel_at(one, place);
    const int        resident = resident_blocks(ctx.device, kernel, place, a.type_k, a.type_v, shared);
    if (pyllm_fattn_no_room(resident)) {
        return;
    }
    // Tests take the copy engine away, and have more tiles in a part than this many multiprocessors leave it.
    static const bool pieces = getenv("PYLLM_TEST_PIECES") != nullptr;
    static const char * const few_parts = getenv("PYLLM_TEST_PARTS");
    if (ggml_cuda_highest_compiled_arch(device.cc) >= 900 && !pieces) {
        a.boxes_k = boxes_of(dst->src[1], a.type_k, one.n, one.heads);
        a.boxes_v = boxes_of(dst->src[2], a.type_v, one.n, one.heads);
    }
    a.row_tiles = (int) ((rows + one.m - 1)/one.m);
    const long  blocks = (long) a.row_tiles*a.n_head_kv/one.heads;
    const int   tiles  = (a.n_kv + one.n - 1)/one.n;
    a.parts = few_parts == nullptr ? split(tiles, blocks*streams, device.nsm, resident) : std::clamp(atoi(few_parts), (tiles + MAX_TILES - 1)/MAX_TILES, tiles);
    a.least = tiles/a.parts;
    a.more  = tiles % a.parts;
    if (a.parts > JOIN_PARTS || streams > UINT16_MAX) {  // more than a launch takes
        pyllm_fattn_no_room(0);
        return;
    }

    const int64_t                n_rows = ggml_nrows(dst);
    ggml_cuda_pool_alloc<half>   partial(ctx.pool());
    ggml_cuda_pool_alloc<float2> meta(ctx.pool());
    if (a.parts > 1) {
        a.partial = partial.alloc(n_rows*a.parts*d_v);
        a.meta    = meta.alloc(n_rows*a.parts);
    }
    ggml_cuda_kernel_launch(kernel, ggml_cuda_kernel_launch_params(dim3(blocks, a.parts, streams), dim3(32*one.warps), shared, ctx.stream()), a);
    CUDA_CHECK(cudaGetLastError());
    if (a.parts > 1) {
        const dim3 joined(n_rows, d_v/join_columns((int) d_v, a.parts));
        ggml_cuda_kernel_launch(join_of(d_v, a.parts), ggml_cuda_kernel_launch_params(joined, dim3(JOIN_THREADS), a.parts*sizeof(float2), ctx.stream()),
                                (const half *) a.partial, (const float2 *) a.meta, a.sinks, a.dst, a.n_head, a.parts);
        CUDA_CHECK(cudaGetLastError());
    }
}
#endif  // NVIDIA
