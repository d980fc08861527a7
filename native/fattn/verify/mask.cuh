// What the mask leaves: the tiles that a block visits.
#pragma once

#include "fattn/verify/tile.cuh"

namespace pyllm::verify {

// Marks of a tile in the list of those that a part visits.
constexpr uint16_t PLAIN = 0x8000;  // no row of Q has a mask value other than zero here

// Whether any of the `positions` mask rows from `mask` on sees any of N columns from `column` on (bit 0), and whether one is not zero (bit 1).
template <int N>
static __device__ __noinline__ int look(const char * mask, int64_t mask_row, bool vectors, int n_kv, int positions, int column) {
    const int lane = threadIdx.x % 32;
    bool      seen = false, biased = false;
    if (vectors && column + N <= n_kv) {
        for (int i = lane; i < positions*(N/8); i += 32) {
            const int  p = i/(N/8);
            const int4 x = *(const int4 *) (mask + p*mask_row + 2*(column + 8*(i - p*(N/8))));
            seen |= ((x.x ^ 0xFC00FC00) | (x.y ^ 0xFC00FC00) | (x.z ^ 0xFC00FC00) | (x.w ^ 0xFC00FC00)) != 0;
            biased |= ((x.x | x.y | x.z | x.w) & 0x7FFF7FFF) != 0;
        }
    } else {
        biased = column + N > n_kv;
        for (int i = lane; i < positions*N; i += 32) {
            const int p = i/N;
            const int c = column + i - p*N;
            if (c < n_kv) {
                const uint16_t x = *(const uint16_t *) (mask + p*mask_row + 2*c);
                seen |= x != 0xFC00;
                biased |= (x & 0x7FFF) != 0;
            }
        }
    }
    return (__any_sync(0xFFFFFFFF, seen) ? 1 : 0) | (__any_sync(0xFFFFFFFF, biased) ? 2 : 0);
}

// What `look` says of each of the part's tiles: the warps share them, and have vectors of several under way. `load` begins, `judge` ends a round of
// `tiles()` tiles from `base` on.
template <class T> struct Looks {
    // Pieces that a warp has under way: more rows of Q have more positions, and longer parts where there are few tiles of rows.
    static constexpr int AHEAD = T::M >= 64 ? 16 : T::M > 16 || T::N >= 128 ? 8 : 4;
    static constexpr int COLUMNS = T::N % 64 == 0 ? 64 : T::N;  // that a piece has, of AT_ONCE positions: a vector for each lane
    static constexpr int VECTORS = COLUMNS/8, AT_ONCE = 32/VECTORS, ACROSS = T::N/COLUMNS;
    const char * mask;
    int64_t      row;
    int          n_kv, positions, first, count;
    int          fold;  // a tile has 2^fold pieces; AHEAD or more: too many, or it is not aligned
    int4         x[AHEAD];

    __device__ __forceinline__ Looks(const char * of, int64_t row_bytes, int rows, int n_positions, int first_tile, int n_tiles, bool aligned)
        : mask(of), row(row_bytes), n_kv(rows), positions(n_positions), first(first_tile), count(n_tiles) {
        const int pieces = (positions + AT_ONCE - 1)/AT_ONCE*ACROSS;
        fold = mask == nullptr || !aligned || pieces > AHEAD ? AHEAD : pieces == 1 ? 0 : pieces == 2 ? 1 : pieces <= 4 ? 2 : pieces <= 8 ? 3 : 4;
    }

    // Tiles of a warp in a round.
    __device__ __forceinline__ int share() const { return fold < AHEAD ? AHEAD >> fold : 1; }
    __device__ __forceinline__ int tiles() const { return share()*T::WARPS; }
    __device__ __forceinline__ bool short_way(int i) const { return fold < AHEAD && (first + i + 1)*T::N <= n_kv; }

    __device__ __forceinline__ void load(int base) {
        const int warp = threadIdx.x/32, lane = threadIdx.x % 32;
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int i = base + warp + (u >> fold)*T::WARPS, piece = u & ((1 << fold) - 1);
            const int p = piece/ACROSS*AT_ONCE + lane/VECTORS;
            x[u] = make_int4(0xFC00FC00, 0xFC00FC00, 0xFC00FC00, 0xFC00FC00);
            if (i < count && short_way(i) && lane < AT_ONCE*VECTORS && p < positions) {
                x[u] = *(const int4 *) (mask + p*row + 2*((first + i)*T::N + piece % ACROSS*COLUMNS + lane % VECTORS*8));
            }
        }
    }

    __device__ __forceinline__ void judge(int base, uint8_t * found) const {
        const int warp = threadIdx.x/32, lane = threadIdx.x % 32;
        bool      seen = false, biased = false;
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int i = base + warp + (u >> fold)*T::WARPS, last = (1 << fold) - 1;
            if (fold < AHEAD && i < count) {
                if (short_way(i)) {
                    const int4 y = make_int4(x[u].x ^ 0xFC00FC00, x[u].y ^ 0xFC00FC00, x[u].z ^ 0xFC00FC00, x[u].w ^ 0xFC00FC00);
                    const bool there = lane < AT_ONCE*VECTORS && (u & last)/ACROSS*AT_ONCE + lane/VECTORS < positions;
                    seen |= (y.x | y.y | y.z | y.w) != 0;
                    biased |= there && ((x[u].x | x[u].y | x[u].z | x[u].w) & 0x7FFF7FFF) != 0;
                    if ((u & last) == last) {
                        mark(i, (__any_sync(0xFFFFFFFF, seen) ? 1 : 0) | (__any_sync(0xFFFFFFFF, biased) ? 2 : 0), found);
                        seen = biased = false;
                    }
                } else if ((u & last) == last) {
                    mark(i, look<T::N>(mask, row, true, n_kv, positions, (first + i)*T::N), found);
                }
            }
        }
        const int i = base + warp;
        if (fold >= AHEAD && i < count) {
            const int column = (first + i)*T::N;
            mark(i, mask != nullptr ? look<T::N>(mask, row, row % 16 == 0 && (uintptr_t) mask % 16 == 0, n_kv, positions, column) : column + T::N > n_kv ? 3 : 1, found);
        }
    }

    static __device__ __forceinline__ void mark(int i, int marks, uint8_t * found) {
        if (threadIdx.x % 32 == 0) {
            found[i] = marks;
        }
    }
};

// The list of the tiles that some row of Q sees, relative to the part's first; returns how many. One warp calls it.
static __device__ __forceinline__ int list_tiles(const uint8_t * found, int count, uint16_t * list) {
    const int lane = threadIdx.x % 32;
    int       have = 0;
#pragma unroll 1
    for (int base = 0; base < count; base += 32) {
        const int      i     = base + lane;
        const int      marks = i < count ? found[i] : 0;
        const uint32_t seen  = __ballot_sync(0xFFFFFFFF, marks & 1);
        if (marks & 1) {
            list[have + __popc(seen & ((1u << lane) - 1))] = (uint16_t) (i | (marks & 2 ? 0 : PLAIN));
        }
        have += __popc(seen);
    }
    return have;
}

}  // namespace pyllm::verify
