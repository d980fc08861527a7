// The instructions of the verify route: asynchronous copies, matrix fragments and products of sm_80 and later.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace pyllm::verify {

static __device__ __forceinline__ uint32_t shared_address(const void * pointer) {
    return (uint32_t) __cvta_generic_to_shared(pointer);
}

// Copies the first `bytes` of WIDTH bytes and zeros the rest; both addresses are multiples of WIDTH (4, 8 or 16).
template <int WIDTH> static __device__ __forceinline__ void copy_async(uint32_t to, const void * from, int bytes) {
    if constexpr (WIDTH == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(WIDTH), "r"(bytes));
    }
}

static __device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;");
}

// Waits until at most `pending` of this thread's groups are under way.
template <int PENDING> static __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#if __CUDA_ARCH__ >= 900
// An mbarrier for one arrival a phase, which says how many bytes will come.
static __device__ __forceinline__ void init_barrier(uint32_t barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

// What was initialised before is seen by the copy engine.
static __device__ __forceinline__ void barriers_are_set() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void wait_barrier(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
        "@!there bra again;\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
}

static __device__ __forceinline__ void prefetch_map(const void * map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One box of a tensor map of four axes; what lies outside of the tensor is zeros.
static __device__ __forceinline__ void copy_box(uint32_t to, const void * map, int c0, int c1, int c2, int c3, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to), "l"(map), "r"(c0), "r"(c1),
                 "r"(c2), "r"(c3), "r"(barrier) : "memory");
}
#else
static __device__ __forceinline__ void init_barrier(uint32_t) {}
static __device__ __forceinline__ void barriers_are_set() {}
static __device__ __forceinline__ void prefetch_map(const void *) {}
static __device__ __forceinline__ void expect_bytes(uint32_t, int) {}
static __device__ __forceinline__ void wait_barrier(uint32_t, uint32_t) {}
static __device__ __forceinline__ void copy_box(uint32_t, const void *, int, int, int, int, uint32_t) {}
#endif

// Four 8x8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8, and gets elements 2*(l % 4) and the next of row l / 4
// of each matrix; `transposed`, of its column l / 4.
static __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
}

static __device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
}

// An 8x8 matrix of 16-bit values, of which lane l has elements 2*(l % 4) and the next of row l / 4: these of column l / 4.
static __device__ __forceinline__ uint32_t transposed(uint32_t of) {
    uint32_t to;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(of));
    return to;
}

// Barrier `name` of `threads` threads; and whether any of them says so.
static __device__ __forceinline__ void meet_at(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

static __device__ __forceinline__ bool any_at(int name, int threads, bool says) {
    uint32_t any;
    asm volatile(
        "{\n"
        ".reg .pred says, any;\n"
        "setp.ne.u32 says, %3, 0;\n"
        "bar.red.or.pred any, %1, %2, says;\n"
        "selp.u32 %0, 1, 0, any;\n"
        "}" : "=r"(any) : "r"(name), "r"(threads), "r"((uint32_t) says) : "memory");
    return any != 0;
}

// d [16][8] += a [16][16] b [16][8], f32 += f16 f16. With g = lane / 4 and t = lane % 4, d holds rows g, g + 8 and columns 2t, 2t + 1; a rows g, g + 8 and
// columns 2t, 2t + 1, 2t + 8, 2t + 9; b these as rows, and column g.
static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t bits_of(half2 h) {
    return *reinterpret_cast<uint32_t *>(&h);
}

static __device__ __forceinline__ half2 half2_of(uint32_t bits) {
    return *reinterpret_cast<half2 *>(&bits);
}

// (a & b) | c in one instruction: of two constants the compiler would make two.
static __device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// A constant that stays in a register.
static __device__ __forceinline__ uint32_t held(uint32_t value) {
    uint32_t x;
    asm("mov.b32 %0, %1;" : "=r"(x) : "r"(value));
    return x;
}

static __device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The next kernel of the stream, if it was launched to overlap, may take up multiprocessors that become free; and may not go on before all before it ended.
static __device__ __forceinline__ void dependents_may_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace pyllm::verify
