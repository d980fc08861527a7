// What a block of either verify kernel works on, and how it begins and ends.
#pragma once

#include "fattn/verify/mask.cuh"
#include "fattn/verify/queries.cuh"

namespace pyllm::verify {

// ALiBi's factor of a query head.
static __device__ __noinline__ float slope_of(float m0, float m1, uint32_t n_head_log2, uint32_t head) {
    return head < n_head_log2 ? powf(m0, head + 1) : powf(m1, 2*(head - n_head_log2) + 1);
}

// Rows row0 to row0 + rows of Q that share a KV head (query positions x query heads, position major), of one KV head or of neighbours; tiles first to
// first + count.
struct Block {
    int          part, kv_head, stream, row0, rows, first_position, positions, first, count;
    const char * q;
    const char * mask;  // of the first position, or nullptr

    __device__ __forceinline__ Block(const Arguments & a, int m, int heads) {
        const int group = a.row_tiles == 1 ? blockIdx.x : blockIdx.x/a.row_tiles;
        part           = blockIdx.y;
        kv_head        = group*heads;
        stream         = blockIdx.z;
        row0           = ((int) blockIdx.x - group*a.row_tiles)*m;
        rows           = min(m, a.n_q*a.gqa - row0);
        first_position = position_of(a, row0);
        positions      = position_of(a, row0 + rows - 1) - first_position + 1;
        q              = a.q + stream*a.at_q.stream;
        mask           = a.mask == nullptr ? nullptr : a.mask + first_position*a.mask_row + (a.mask_streams == 1 ? 0 : stream % a.mask_streams)*a.mask_stream;
        first          = first_tile(part, a.least, a.more);
        count          = a.least + (part < a.more);
    }

    static __device__ __forceinline__ int position_of(const Arguments & a, int row) { return (int) (row*a.per_gqa >> 32); }

    // Position and query head of each row, whose head is -1 where it is not there, and the factors of mask values.
    template <class T> __device__ __forceinline__ void list_rows(const Arguments & a, int2 * row_s, float * slope_s) const {
#pragma unroll 1  // what runs once is bound by the instructions that it has to fetch
        for (int i = threadIdx.x; i < T::HEADS*T::M; i += T::THREADS) {
            const int r        = i % T::M;
            const int row      = row0 + min(r, rows - 1);
            const int position = position_of(a, row);
            const int head     = (kv_head + i/T::M)*a.gqa + row - position*a.gqa;
            row_s[i]   = make_int2(position, r < rows ? head : -1);
            slope_s[i] = a.max_bias == 0.0f ? 1.44269504f : 1.44269504f*slope_of(a.m0, a.m1, a.n_head_log2, head);
        }
    }

    // Q into shared memory, and the list of the tiles that some row sees; returns how many. Every thread calls it, and may read both afterwards.
    // `start(i)` begins to copy the tiles of stage i: the first ones once Q and the mask are on their way, which would wait behind all these otherwise, the
    // others when the mask is there. `prepare()` comes when Q is in shared memory, and what it writes there may be read afterwards.
    template <class T, class F, class G>
    __device__ __forceinline__ int begin(const Arguments & a, const int2 * row_s, char * q_s, uint8_t * found, uint16_t * list, F && start, G && prepare) const {
        __shared__ int total;
        const bool     permuted = is_quantised(T::TYPE_K == ANY ? a.type_k : T::TYPE_K);
        Queries<T>     queries;
        Looks<T>       looks(mask, a.mask_row, a.n_kv, positions, first, count, a.mask_vectors);
        looks.load(0);
        queries.load(a, q, row_s, 0);
        start(0);
        queries.store(a, q_s, 0, permuted);
#pragma unroll 1
        for (int u = Queries<T>::BATCH; u < Queries<T>::EACH; u += Queries<T>::BATCH) {
            queries.load(a, q, row_s, u);
            queries.store(a, q_s, u, permuted);
        }
        looks.judge(0, found);
        for (int i = 1; i < STAGES; ++i) {
            start(i);
        }
#pragma unroll 1
        for (int base = looks.tiles(); base < count; base += looks.tiles()) {
            looks.load(base);
            looks.judge(base, found);
        }
        __syncthreads();
        prepare();
        if (threadIdx.x < 32) {
            const int n = list_tiles(found, count, list);
            if (threadIdx.x == 0) {
                total = n;
            }
        }
        __syncthreads();
        return total;
    }

    // Which row of the result, or of its parts, is that of `at_row`, and what O is multiplied by, with this reference maximum and sum, which it notes. Parts are
    // divided by their sums, so that they lie within V's range: f16. One thread calls it for a row.
    struct End {
        uint32_t place;
        float    by;
    };
    __device__ __forceinline__ End end(const Arguments & a, int2 at_row, float maximum, float sum) const {
        const uint32_t row = (uint32_t) (stream*a.n_q + at_row.x)*a.n_head + at_row.y;
        if (a.parts > 1) {
            const uint32_t place = row*a.parts + part;
            a.meta[place] = make_float2(maximum, sum);
            return { place, sum > 0.0f ? 1.0f/sum : 0.0f };
        }
        const float sink = a.sinks != nullptr ? 1.44269504f*a.sinks[at_row.y] : -INFINITY;
        const float most = fmaxf(fmaxf(maximum, sink), -1e30f);
        const float own  = exp2_of(maximum - most);
        const float full = sum*own + exp2_of(sink - most);
        return { row, full > 0.0f ? own/full : 0.0f };
    }

    // Calls `write` with where row `place` begins.
    template <class F> static __device__ __forceinline__ void write(const Arguments & a, uint32_t place, int d_v, F && write) {
        if (a.parts > 1) {
            write(a.partial + (uint64_t) place*d_v);
        } else {
            write(a.dst + (uint64_t) place*d_v);
        }
    }
};

// Softcap and mask of this warp's scores: rows of Q from `m0`, KV rows from `column`. `plain`: no row has a mask value other than zero here.
template <class T>
static __device__ __forceinline__ void bias(const Arguments & a, const Block & block, float (&s)[T::OWN_M][T::OWN_N][4], const int2 * row_s, const float * slope_s, int m0,
                                            int column, bool plain) {
    const int lane = threadIdx.x % 32, g = lane/4, t = lane % 4;
    if (a.softcap != 0.0f) {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int n = 0; n < T::OWN_N; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[m][n][e] = a.softcap*(1.0f - 2.0f/(exp2_of(2.0f*s[m][n][e]) + 1.0f));
                }
            }
        }
    }
    if (!plain) {
#pragma unroll
        for (int m = 0; m < T::OWN_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int    r   = m0 + 16*m + g + 8*h;
                const char * row = block.mask + (row_s[r].x - block.first_position)*a.mask_row;
#pragma unroll
                for (int n = 0; n < T::OWN_N; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int c = column + 8*n + 2*t + e;
                        s[m][n][2*h + e] += c >= a.n_kv ? -INFINITY : block.mask == nullptr ? 0.0f : slope_s[r]*__half2float(*(const half *) (row + 2*c));
                    }
                }
            }
        }
    }
}

// The largest score of this lane in row 16m + g (`h` 0) or 16m + g + 8 (1).
template <int OWN_M, int OWN_N> static __device__ __forceinline__ float largest(const float (&s)[OWN_M][OWN_N][4], int m, int h) {
    float x = fmaxf(s[m][0][2*h], s[m][0][2*h + 1]);
#pragma unroll
    for (int n = 1; n < OWN_N; ++n) {
        x = fmaxf(x, fmaxf(s[m][n][2*h], s[m][n][2*h + 1]));
    }
    return x;
}

// SHARES of O into one, and out: row r to the place in `row_s`, times `by[r*stride]`. Every thread calls it.
template <class T, int SHARES>
static __device__ __forceinline__ void add_up(const Arguments & a, const int2 * row_s, const float * by, int stride, const float * o_s) {
    constexpr int ROWS = T::HEADS*T::M, COLUMNS = T::D_V/4;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS*COLUMNS; i += T::THREADS) {
        const int  r = i/COLUMNS, c = i % COLUMNS;
        const int2 at = row_s[r];
        if (at.y >= 0) {
            const float own = by[r*stride];
            float4      x{};
#pragma unroll
            for (int j = 0; j < SHARES; ++j) {
                const float4 y = *(const float4 *) (o_s + (j*ROWS + r)*T::O_STRIDE + 4*c);
                x.x += y.x;
                x.y += y.y;
                x.z += y.z;
                x.w += y.w;
            }
            Block::write(a, (uint32_t) at.x, T::D_V, [&](auto * to) { store(to + 4*c, x.x*own, x.y*own, x.z*own, x.w*own); });
        }
    }
}

// The teams' parts of O into one, and out. `stats_s`: reference maximum and sum of each row, [SETS][ROWS], as the caller wrote them; `write()` puts O of all
// teams into `o_s`, weighed by `joined_s`: the maximum of all sets, and what the row is multiplied by. Positions in `row_s` become places. Every thread calls it.
template <class T, class F>
static __device__ __forceinline__ void join_teams(const Arguments & a, const Block & block, int2 * row_s, const float2 * stats_s, float2 * joined_s, const float * o_s,
                                                  F && write) {
    constexpr int ROWS = T::HEADS*T::M;
    __syncthreads();
#pragma unroll 1
    for (int r = threadIdx.x; r < ROWS; r += T::THREADS) {
        float top = -INFINITY, all = 0.0f;
#pragma unroll
        for (int i = 0; i < T::SETS; ++i) {
            top = fmaxf(top, stats_s[i*ROWS + r].x);
        }
#pragma unroll
        for (int i = 0; i < T::SETS; ++i) {
            const float2 own = stats_s[i*ROWS + r];
            all += own.x == -INFINITY ? 0.0f : own.y*exp2_of(own.x - top);
        }
        const int2 at = row_s[r];
        if (at.y >= 0) {
            const Block::End end = block.end(a, at, top, all);
            row_s[r].x  = (int) end.place;
            joined_s[r] = make_float2(top, end.by);
        } else {
            joined_s[r] = make_float2(top, 0.0f);
        }
    }
    __syncthreads();
    write();
    __syncthreads();
    add_up<T, T::TEAMS>(a, row_s, &joined_s->y, 2, o_s);
}

// Over the four lanes that have a row of a fragment.
static __device__ __forceinline__ float row_maximum(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
}

static __device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
}

}  // namespace pyllm::verify
