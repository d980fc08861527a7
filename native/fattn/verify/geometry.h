// Sizes of the verify route: how K and V lie in shared memory, what an instance needs, which one takes a node. No CUDA in it; pyllm/routes/verify.py has
// the same numbers, and tests/routes/test_verify.py compares them.
#pragma once

#include <algorithm>
#include <climits>

#if defined(__CUDACC__)
#define PYLLM_BOTH __host__ __device__
#else
#define PYLLM_BOTH
#endif

namespace pyllm::verify {

// K and V types, and `ANY`: an instance that asks for the type while it runs.
enum Type : int { F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, ANY };

PYLLM_BOTH constexpr bool is_quantised(int type) {
    return type >= Q8_0;
}

// Bytes of 32 elements.
PYLLM_BOTH constexpr int block_bytes(int type) {
    return type == Q8_0 ? 34 : type == Q5_1 ? 24 : type == Q5_0 ? 22 : type == Q4_1 ? 20 : type == Q4_0 || type == IQ4_NL ? 18 : 64;
}

PYLLM_BOTH constexpr int row_bytes(int type, int d) {
    return is_quantised(type) ? d/32*block_bytes(type) : 2*d;
}

// Bytes from row to row of a tile in shared memory: pieces of 16 that hold a row wherever it begins in the first of them, at a multiple of what divides
// its bytes; an odd number of them, which spreads eight rows over all banks.
PYLLM_BOTH constexpr int tile_stride(int type, int d) {
    const int bytes   = row_bytes(type, d);
    const int aligned = bytes & -bytes;
    const int pieces  = (bytes + (aligned >= 16 ? 0 : 16 - aligned) + 15)/16;
    return 16*(pieces | 1);
}

// Most tiles of a part; their list lies in shared memory.
constexpr int MAX_TILES = 1024;
// Tiles of K, and of V, that a block holds: the one it works on and the next.
constexpr int STAGES = 2;

// M rows of Q, N KV rows a tile. Without teams all warps work on a tile: they divide the columns of V, and each takes `rows` KV rows for the scores. With
// teams, of warps/teams each, a team works on a tile of its own, which has `heads` neighbouring KV heads. `blocks`: what registers are kept for on a
// multiprocessor. Where M is no multiple of 16 the products are transposed (transposed.cuh).
struct Instance {
    int d_k, d_v, m, n, warps, rows, teams, heads, type_k, type_v, blocks;
};

// Bytes before Q where there are teams: maxima and sums of each set of rows, the rows of Q, the list of tiles.
PYLLM_BOTH constexpr int head_bytes(int rows, int sets) {
    return ((sets + 1)*rows*8 + 12*rows + 3*MAX_TILES + 127)/128*128;
}

// Bytes of dynamic shared memory: Q, two tiles of P, the rings, maxima and sums, the list of tiles. Teams have no P there, and in the end their O in place
// of Q and rings. Transposed products have where they begin, [rows/8][d_k/32] of 64 bytes, and a tile of P where several warps share a head.
PYLLM_BOTH constexpr int shared_bytes(const Instance & one, int type_k, int type_v) {
    const int rows = one.heads*one.m, queries = rows*(2*one.d_k + 16);
    const int ring = STAGES*one.n*(tile_stride(type_k, one.heads*one.d_k) + tile_stride(type_v, one.heads*one.d_v));
    if (one.m % 16 != 0) {
        const int of_head = one.warps/one.teams/one.heads, p = of_head > 1 ? one.teams*rows*(2*one.n + 16) : 0;
        const int tiles = queries + p + one.teams*ring, joined = one.teams*rows*4*(one.d_v + 4);
        return head_bytes(rows, one.teams*of_head) + rows*one.d_k/4 + (tiles > joined ? tiles : joined);
    }
    if (one.teams > 0) {
        const int tiles = queries + one.teams*ring, joined = one.teams*rows*4*(one.d_v + 8);
        return head_bytes(rows, one.teams) + (tiles > joined ? tiles : joined);
    }
    return queries + 2*rows*(2*one.n + 16) + ring + (one.n/one.rows + 5)*rows*4 + 3*MAX_TILES;
}

// What a kernel has of its own beside these, at most: mbarriers, and whatever the compiler adds.
constexpr int STATIC_BYTES = 256;

constexpr Instance INSTANCES[] = {
#define VERIFY_INSTANCE(d_k, d_v, m, n, warps, rows, teams, heads, type_k, type_v, blocks) { d_k, d_v, m, n, warps, rows, teams, heads, type_k, type_v, blocks },
#include "fattn/verify/instances.inc"
#undef VERIFY_INSTANCE
};
constexpr int N_INSTANCES = sizeof(INSTANCES)/sizeof(*INSTANCES);

// The instance for `rows` rows of Q that share a KV head, on a device with `smem` bytes for a block; -1 if there is none. `beside`: so many KV heads lie
// side by side, in K and in V. Best is what reads K and V fewest times, then an instance of just these types, then few unused rows, then the rows of more
// heads at once, then a long tile.
inline int choose(int d_k, int d_v, int type_k, int type_v, long rows, int smem, int beside) {
    int  best = -1;
    long best_rank[5]{};
    for (int i = 0; i < N_INSTANCES; ++i) {
        const Instance & one = INSTANCES[i];
        const bool exact = one.type_k == type_k && one.type_v == type_v;
        if (one.d_k != d_k || one.d_v != d_v || !(exact || one.type_k == ANY) || beside % one.heads != 0 || shared_bytes(one, type_k, type_v) + STATIC_BYTES > smem) {
            continue;
        }
        const long rank[5] = { -((rows + one.m - 1)/one.m), exact, -one.m, one.heads, one.n };
        if (best < 0 || std::lexicographical_compare(best_rank, best_rank + 5, rank, rank + 5)) {
            best = i;
            std::copy(rank, rank + 5, best_rank);
        }
    }
    return best;
}

// Where part `part` begins, of which each has `least` tiles and the first `more` one more: the last, whose mask is not plain, is not among the longest.
PYLLM_BOTH constexpr int first_tile(int part, int least, int more) {
    return part*least + (part < more ? part : more);
}

// Into how many parts `tiles` are split for each of `blocks` (row tiles x KV heads x streams), so that the busiest of the multiprocessors, which hold
// `resident` blocks each, is least busy. In one wave all that are resident hide each other's latency; more waves are for many blocks that divide badly,
// and each costs about two tiles.
inline int split(int tiles, long blocks, int multiprocessors, int resident) {
    const int least_parts = (tiles + MAX_TILES - 1)/MAX_TILES;
    int       best        = least_parts;
    double    least       = -1.0;
    for (int waves = 1; waves <= 3; ++waves) {
        const int    parts   = (int) std::clamp<long>((long) multiprocessors*resident*waves/blocks, least_parts, tiles);
        const double busiest = (double) ((parts*blocks + multiprocessors - 1)/multiprocessors);
        const double cost    = busiest*tiles/parts + 2.0*std::max(1.0, busiest/resident);
        if (least < 0.0 || cost < least) {
            least = cost;
            best  = parts;
        }
    }
    return best;
}

}  // namespace pyllm::verify
