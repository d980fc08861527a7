// The rings: tiles of K and of V on their way from memory into shared memory, as they are stored.
//
// On sm_90 and later the copy engine brings a whole tile when one thread asks for it, and an mbarrier tells when it is there. Else, and where strides do
// not allow that, all threads copy pieces of 16 bytes or less with cp.async.
#pragma once

#include "fattn/verify/geometry.h"
#include "fattn/verify/ptx.cuh"

#include <cuda.h>

namespace pyllm::verify {

struct Strides {
    int64_t row, head, stream;  // bytes
};

// K or V for the copy engine: boxes of N rows, each `tile_stride` long, from the multiple of 16 bytes at or before a head's begin.
struct alignas(64) Boxes {
    CUtensorMap map;       // [row, KV row, head, stream]; heads that lie within a row are places in it
    int32_t     per_head;  // bytes from head to head within a row; 0 where heads are an axis
    int32_t     element;   // bytes of an element of `map`, as a power of two
    int32_t     bytes;     // of a box; 0: there is no map
};

// Where in its place a row begins: copies of 16 bytes begin at a multiple of 16.
static __device__ __forceinline__ int shift_of(const char * first, int width) {
    return width == 16 ? (int) ((uintptr_t) first & 15) : 0;
}

// `chunks` of WIDTH bytes for each row of a tile into a slot. Rows from `rows` on, and what lies beyond `bytes` of a row, are zeros.
template <int N, int THREADS, int WIDTH>
static __device__ __forceinline__ void copy_rows(uint32_t to, const char * from, int64_t row_stride, int rows, int bytes, int stride) {
    const int chunks = (bytes + WIDTH - 1)/WIDTH;
    for (int i = threadIdx.x % THREADS; i < N*chunks; i += THREADS) {
        const int r = i/chunks;
        const int c = i - r*chunks;
        copy_async<WIDTH>(to + r*stride + c*WIDTH, from + (r < rows ? r*row_stride + c*WIDTH : 0), r < rows ? min(WIDTH, bytes - c*WIDTH) : 0);
    }
}

// A tile whose rows are fewer than N, or not as `Copier` wants them, into a slot.
template <int N, int THREADS>
static __device__ __noinline__ void copy_any(uint32_t to, const char * first, int64_t row_stride, int rows, int bytes, int stride, int width) {
    if (width == 16) {
        const int shift = shift_of(first, width);
        copy_rows<N, THREADS, 16>(to, first - shift, row_stride, rows, shift + bytes, stride);
    } else if (width == 8) {
        copy_rows<N, THREADS, 8>(to, first, row_stride, rows, bytes, stride);
    } else if (width == 4) {
        copy_rows<N, THREADS, 4>(to, first, row_stride, rows, bytes, stride);
    } else {
        for (int i = threadIdx.x % THREADS; i < N*(bytes/2); i += THREADS) {
            const int r = i/(bytes/2);
            const int c = i - r*(bytes/2);
            const uint16_t x = r < rows ? *(const uint16_t *) (first + r*row_stride + 2*c) : 0;
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + r*stride + 2*c), "h"(x) : "memory");
        }
    }
}

// Copies whole tiles of a type that is known, by pieces of 16 bytes: where a thread's pieces lie is the same for each tile.
template <int N, int THREADS, int TYPE, int D> struct Copier {
    static constexpr int  BYTES = row_bytes(TYPE, D), STRIDE = tile_stride(TYPE, D), PLACES = STRIDE/16;
    static constexpr bool REGULAR = BYTES % 16 == 0 && THREADS % (BYTES/16) == 0;  // a thread has one column of pieces
    static constexpr int  CHUNKS = REGULAR ? BYTES/16 : PLACES;
    static constexpr int  PIECES = (N*CHUNKS + THREADS - 1)/THREADS;
    static constexpr bool ALL = N*CHUNKS % THREADS == 0 && 16*(CHUNKS - 1) < BYTES;  // no piece is beyond the tile or its row, wherever this begins
    static_assert(PIECES <= 32, "which pieces there are is a word's bits");
    const char * base;
    uint32_t     tile_bytes;
    uint32_t     from[REGULAR ? 1 : PIECES];
    uint32_t     to, valid;

    __device__ __forceinline__ void start(const char * first, int64_t row_stride) {
        const int shift = shift_of(first, 16), thread = threadIdx.x % THREADS;
        base       = first - shift;
        tile_bytes = (uint32_t) (N*row_stride);
        to         = REGULAR ? thread/CHUNKS*STRIDE + thread % CHUNKS*16 : thread*16;
        valid      = 0;
#pragma unroll
        for (int j = 0; j < PIECES; ++j) {
            const int i = thread + j*THREADS;
            const int r = i/CHUNKS, c = i - r*CHUNKS;
            valid |= (i < N*CHUNKS && 16*c < shift + BYTES ? 1u : 0u) << j;
            if (!REGULAR || j == 0) {
                from[j] = (uint32_t) (r*(uint32_t) row_stride + 16*c);
            }
        }
    }

    __device__ __forceinline__ void run(uint32_t slot, int tile) const {
        const char * first = base + (uint64_t) (uint32_t) tile*tile_bytes;
        if constexpr (REGULAR) {
            first += from[0];
        }
        const uint32_t step = tile_bytes/N*(THREADS/CHUNKS);
#pragma unroll
        for (int j = 0; j < PIECES; ++j) {
            if (ALL || (valid >> j & 1)) {
                copy_async<16>(slot + to + (REGULAR ? j*(THREADS/CHUNKS)*STRIDE : j*THREADS*16), REGULAR ? first + j*step : first + from[j], 16);
            }
        }
    }
};

// K or V of a block: its tiles, and the slots that they go to. The head dim is D; TYPE may be ANY.
template <int N, int THREADS, int TYPE, int D> struct Ring {
    static constexpr bool KNOWN = TYPE != ANY;
    Copier<N, THREADS, KNOWN ? TYPE : F16, D> copier;
    const char *  from;
    const Boxes * boxes;
    int64_t       row;
    int           n_kv, type, width, head, stream;
    uint32_t      slots, slot_bytes, full;  // shared memory: the slots, and an mbarrier for each
    uint32_t      turns = 0;                // of each slot's mbarrier, a bit

    // `barriers`: STAGES of 8 bytes.
    __device__ __forceinline__ void start(const char * base, const Strides & at, int kv_head, int of_stream, int rows, int kind, int copies, const Boxes & with,
                                          char * to, uint64_t * barriers) {
        from       = base + kv_head*at.head + of_stream*at.stream;
        row        = at.row;
        boxes      = &with;
        n_kv       = rows;
        type       = KNOWN ? TYPE : kind;
        width      = copies;
        head       = kv_head;
        stream     = of_stream;
        slots      = shared_address(to);
        slot_bytes = (uint32_t) (N*tile_stride(type, D));
        full       = shared_address(barriers);
#if __CUDA_ARCH__ >= 900
        if (bulk() && threadIdx.x % THREADS == 0) {
            prefetch_map(&boxes->map);
            for (int i = 0; i < STAGES; ++i) {
                init_barrier(full + 8*i);
            }
            barriers_are_set();
        }
#else
        copier.start(from, row);
#endif
    }

    __device__ __forceinline__ bool bulk() const {
#if __CUDA_ARCH__ >= 900
        return boxes->bytes != 0;
#else
        return false;
#endif
    }

    // Begins to copy a tile; every thread calls it, and commits its copies afterwards.
    __device__ __forceinline__ void copy(int tile, int slot) const {
        const uint32_t to = slots + slot*slot_bytes;
#if __CUDA_ARCH__ >= 900
        if (bulk()) {
            if (threadIdx.x % THREADS == 0) {
                expect_bytes(full + 8*slot, boxes->bytes);
                copy_box(to, &boxes->map, (head*boxes->per_head & ~15) >> boxes->element, tile*N, boxes->per_head != 0 ? 0 : head, stream, full + 8*slot);
            }
            return;
        }
#else
        if (KNOWN && (tile + 1)*N <= n_kv && width == 16) {  // whole tiles of a known type take the short way
            copier.run(to, tile);
            return;
        }
#endif
        copy_any<N, THREADS>(to, from + (int64_t) tile*N*row, row, n_kv - tile*N, row_bytes(type, D), tile_stride(type, D), width);
    }

    // Waits for the tile that was last copied into `slot`, if the copy engine brings it; wait_copies and a barrier wait for the others.
    __device__ __forceinline__ void wait(int slot) {
        if (bulk()) {
            wait_barrier(full + 8*slot, turns >> slot & 1);
            turns ^= 1u << slot;
        }
    }

    // Bytes from a slot's begin to the first row's.
    __device__ __forceinline__ int shift() const { return shift_of(from, width); }
};

// K and V of a tile into `slot` of both rings, in this order.
template <class K, class V> static __device__ __forceinline__ void copy_both(const K & keys, const V & values, bool there, int tile, int slot) {
    if (there) {
        keys.copy(tile, slot);
    }
    commit_copies();
    if (there) {
        values.copy(tile, slot);
    }
    commit_copies();
}

// The first STAGES tiles were copied before the list of those that are seen was made: tiles `place`, `place` + `step` ... of `count`. Where the list has
// others in their place, these are copied instead. `tile_at(i)` is tile i of the list, from `first` on when all are seen. Returns how often it came to `meet`.
template <class K, class V, class F, class G>
static __device__ __forceinline__ int copy_anew(K & keys, V & values, int place, int step, int first, int count, int n_tiles, F && tile_at, G && meet) {
    int anew = 0;
#pragma unroll 1
    for (int i = 0; i < STAGES; ++i, place += step) {
        const bool wanted = place < n_tiles;
        if (place < count && (!wanted || tile_at(place) != first + place)) {
            wait_copies<0>();
            keys.wait(i);
            values.wait(i);
            meet();
            copy_both(keys, values, wanted, wanted ? tile_at(place) : 0, i);
            ++anew;
        }
    }
    if (anew > 0) {
        wait_copies<0>();
    }
    return anew;
}

}  // namespace pyllm::verify
