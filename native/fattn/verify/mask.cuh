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

// What `look` says of each of the part's tiles, into `found`: the warps share them. Vectors of several tiles are under way together.
template <class T>
static __device__ __forceinline__ void look_at_tiles(const Arguments & a, const char * mask, int positions, int first, int count, uint8_t * found) {
    constexpr int AHEAD = 2;
    const int     warp = threadIdx.x/32, lane = threadIdx.x % 32;
    for (int base = warp; base < count; base += AHEAD*T::WARPS) {
        int4 x[AHEAD];
        const auto short_way = [&](int i) { return mask != nullptr && a.mask_vectors && positions*(T::N/8) <= 32 && (first + i + 1)*T::N <= a.n_kv; };
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int i = base + u*T::WARPS;
            x[u] = make_int4(0xFC00FC00, 0xFC00FC00, 0xFC00FC00, 0xFC00FC00);
            if (i < count && short_way(i) && lane < positions*(T::N/8)) {
                x[u] = *(const int4 *) (mask + lane/(T::N/8)*a.mask_row + 2*((first + i)*T::N + lane % (T::N/8)*8));
            }
        }
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            const int i = base + u*T::WARPS;
            if (i < count) {
                int marks;
                if (short_way(i)) {
                    const bool seen   = ((x[u].x ^ 0xFC00FC00) | (x[u].y ^ 0xFC00FC00) | (x[u].z ^ 0xFC00FC00) | (x[u].w ^ 0xFC00FC00)) != 0;
                    const bool biased = lane < positions*(T::N/8) && ((x[u].x | x[u].y | x[u].z | x[u].w) & 0x7FFF7FFF) != 0;
                    marks = (__any_sync(0xFFFFFFFF, seen) ? 1 : 0) | (__any_sync(0xFFFFFFFF, biased) ? 2 : 0);
                } else {
                    const int column = (first + i)*T::N;
                    marks = mask != nullptr ? look<T::N>(mask, a.mask_row, a.mask_vectors, a.n_kv, positions, column) : column + T::N > a.n_kv ? 3 : 1;
                }
                if (lane == 0) {
                    found[i] = marks;
                }
            }
        }
    }
}

// The list of the tiles that some row of Q sees, relative to the part's first; returns how many. One warp calls it.
static __device__ __forceinline__ int list_tiles(const uint8_t * found, int count, uint16_t * list) {
    const int lane = threadIdx.x % 32;
    int       have = 0;
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
