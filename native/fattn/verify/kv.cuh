// K and V as the cache stores them, and their way into f16 fragments of the matrix units, without a tile of f16 in between.
//
// A block of 32 elements has a scale and its quants. A quant word is four bytes p0..p3; of types of 4 and 5 bits byte i holds element i in its low and
// element 16 + i in its high half. Of K a lane reads four neighbours of one row; of V two neighbours of two rows. Either way (p0, p2) and (p1, p3) are
// the pairs that one register of a fragment holds:
//
//   K  the contraction runs over the head dim, whose order is free as long as Q has the same: see `k_column`
//   V  p0, p1 are elements 2g, 2g + 1 of the first row, p2, p3 of the second: columns of two fragments; element 2e + j % 2 of the four from
//      16 (j / 2) + 4t on is column 2t + e of fragment j
#pragma once

#include "fattn/verify/geometry.h"
#include "fattn/verify/ptx.cuh"

namespace pyllm::verify {

// Column of Q in shared memory for element `i` of the head dim.
static __host__ __device__ constexpr int k_column(bool quantised, int i) {
    return quantised ? (i & ~15) + (i & 15)/4*2 + (i & 3)/2 + 8*(i & 1) : i;
}

static __device__ __forceinline__ uint32_t half_word(const char * p) {
    return *(const uint16_t *) p;
}

// Four bytes at an even address; `aligned`: at a multiple of four.
template <bool aligned> static __device__ __forceinline__ uint32_t word(const char * p) {
    if constexpr (aligned) {
        return *(const uint32_t *) p;
    } else {
        return __byte_perm(half_word(p), half_word(p + 2), 0x5410);
    }
}

// 1024 + the low half, or 1024 + 16 times the high half, of bytes 0 and 2: exact in f16.
static __device__ __forceinline__ half2 low_nibbles(uint32_t word) {
    return half2_of(and_or(word, held(0x000F000Fu), held(0x64006400u)));
}

static __device__ __forceinline__ half2 high_nibbles(uint32_t word) {
    return half2_of(and_or(word, held(0x00F000F0u), held(0x64006400u)));
}

// Int8 as f16: 1024 + 128 + value by the exponent's trick, for the byte pairs (p0, p2) and (p1, p3).
static __device__ __forceinline__ void from_bytes(uint32_t word, half2 scale, uint32_t & even, uint32_t & odd) {
    const uint32_t shifted = word ^ 0x80808080u;
    const half2    bias    = half2_of(0x64806480u);  // 1152
    even = bits_of(__hmul2(__hsub2(half2_of(__byte_perm(shifted, 0x64646464u, 0x4240)), bias), scale));
    odd  = bits_of(__hmul2(__hsub2(half2_of(__byte_perm(shifted, 0x64646464u, 0x4341)), bias), scale));
}

// Two entries of iq4_nl's table for each byte of `word`: p0 low, p0 high, p1 low, p1 high in `first`, those of p2 and p3 in `second`.
static __device__ __forceinline__ void look_up(uint32_t word, uint32_t & first, uint32_t & second) {
    // -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113
    constexpr uint32_t a = 0xBFAD9881u, b = 0xF6EADDCFu, c = 0x26190D01u, d = 0x71594535u;
    const uint32_t place = word & 0x77777777u, upper = (word & 0x88888888u) >> 1 | 0x32103210u;
    first  = __byte_perm(__byte_perm(a, b, place), __byte_perm(c, d, place), upper);
    second = __byte_perm(__byte_perm(a, b, place >> 16), __byte_perm(c, d, place >> 16), upper >> 16);
}

// What a block's first bytes say, for the one row of K or the two of V that a lane reads: scale, minimum (q4_1, q5_1) and fifth bits (q5_0, q5_1).
struct Head {
    half2    scale, minimum;
    uint32_t fifth;  // of p0..p3 low in bits 0..3, of p0..p3 high in bits 16..19
};

template <int type> static __device__ __forceinline__ constexpr int quants_at() {
    return block_bytes(type) - (type == Q8_0 ? 32 : 16);
}

template <int type> static __device__ __forceinline__ uint32_t fifth_bits(const char * block) {
    const char * p = block + (type == Q5_1 ? 4 : 2);
    return half_word(p) | half_word(p + 2) << 16;
}

// `t`: the lane reads bytes 4t to 4t + 3 of the quants.
template <int type> static __device__ __forceinline__ Head head_of_k(const char * block, int t) {
    Head head{};
    head.scale = __half2half2(*(const half *) block);
    if constexpr (type == Q4_1 || type == Q5_1) {
        head.minimum = __half2half2(*(const half *) (block + 2));
    }
    if constexpr (type == Q5_0 || type == Q5_1) {
        head.fifth = fifth_bits<type>(block) >> 4*t & 0x000F000Fu;
    }
    return head;
}

// `g`: the lane reads bytes 2g and 2g + 1 of the quants of both rows.
template <int type> static __device__ __forceinline__ Head head_of_v(const char * block0, const char * block1, int g) {
    Head head{};
    head.scale = half2_of(__byte_perm(half_word(block0), half_word(block1), 0x5410));
    if constexpr (type == Q4_1 || type == Q5_1) {
        head.minimum = half2_of(__byte_perm(half_word(block0 + 2), half_word(block1 + 2), 0x5410));
    }
    if constexpr (type == Q5_0 || type == Q5_1) {
        head.fifth = (fifth_bits<type>(block0) >> 2*g & 0x00030003u) | (fifth_bits<type>(block1) >> 2*g & 0x00030003u) << 2;
    }
    return head;
}

// The eight elements of a lane, four pairs: low even, low odd, high even, high odd. `high` is the word of elements 16 to 31, of q8_0 alone.
template <int type> static __device__ __forceinline__ void decode(uint32_t word, uint32_t high, const Head & head, uint32_t (&to)[4]) {
    if constexpr (type == Q8_0) {
        from_bytes(word, head.scale, to[0], to[1]);
        from_bytes(high, head.scale, to[2], to[3]);
    } else if constexpr (type == IQ4_NL) {
        uint32_t first, second;
        look_up(word, first, second);
        from_bytes(__byte_perm(first, second, 0x6420), head.scale, to[0], to[1]);
        from_bytes(__byte_perm(first, second, 0x7531), head.scale, to[2], to[3]);
    } else {
        const uint32_t next = word >> 8;
        const half2    nibbles[4] = { low_nibbles(word), low_nibbles(next), high_nibbles(word), high_nibbles(next) };
        const half2    sixteenth  = half2_of(0x2C002C00u);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            half2 value;
            if constexpr (type == Q4_0) {
                value = i < 2 ? __hsub2(nibbles[i], half2_of(0x64086408u)) : __hfma2(nibbles[i], sixteenth, half2_of(0xD480D480u));  // -1032, -72
            } else {
                value = i < 2 ? __hsub2(nibbles[i], half2_of(0x64006400u)) : __hfma2(nibbles[i], sixteenth, half2_of(0xD400D400u));  // -1024, -64
            }
            if constexpr (type == Q5_0 || type == Q5_1) {
                const uint32_t bits = head.fifth >> (i < 2 ? 0 : 16) >> i % 2;  // bit 0 for the first of the pair, bit 2 for the second
                const uint32_t both = (bits & 1) | (bits & 4) << 14;
                value = __hfma2(half2_of(both*0x3C00u), half2_of(0x4C004C00u), value);  // 1 * 16
                if constexpr (type == Q5_0) {
                    value = __hsub2(value, half2_of(0x4C004C00u));
                }
            }
            if constexpr (type == Q4_1 || type == Q5_1) {
                to[i] = bits_of(__hfma2(value, head.scale, head.minimum));
            } else {
                to[i] = bits_of(__hmul2(value, head.scale));
            }
        }
    }
}

// Block `b` of the row of K that begins at `row`: fragments of two steps of 16 columns, to[0], to[1] and to[2], to[3].
template <int type, bool b_is_odd> static __device__ __forceinline__ void load_k(const char * row, int b, int t, uint32_t (&to)[4]) {
    const char *   block   = row + b*block_bytes(type);
    constexpr bool aligned = (quants_at<type>() + (b_is_odd ? block_bytes(type) : 0)) % 4 == 0;
    const uint32_t low     = word<aligned>(block + quants_at<type>() + 4*t);
    const uint32_t high    = type == Q8_0 ? word<aligned>(block + quants_at<type>() + 16 + 4*t) : 0;
    decode<type>(low, high, head_of_k<type>(block, t), to);
}

// Block `b` of the rows of V that begin at `row0` and `row1`: one register of each of four fragments of 8 columns.
template <int type> static __device__ __forceinline__ void load_v(const char * row0, const char * row1, int b, int g, uint32_t (&to)[4]) {
    const char *   block0 = row0 + b*block_bytes(type);
    const char *   block1 = row1 + b*block_bytes(type);
    constexpr int  at     = quants_at<type>();
    const uint32_t low    = __byte_perm(half_word(block0 + at + 2*g), half_word(block1 + at + 2*g), 0x5410);
    const uint32_t high   = type == Q8_0 ? __byte_perm(half_word(block0 + at + 16 + 2*g), half_word(block1 + at + 16 + 2*g), 0x5410) : 0;
    decode<type>(low, high, head_of_v<type>(block0, block1, g), to);
}

// Two or four neighbours of a row of O, as f32 or as f16.
static __device__ __forceinline__ void store(float * to, float x, float y) { *(float2 *) to = make_float2(x, y); }
static __device__ __forceinline__ void store(half * to, float x, float y) { *(half2 *) to = __floats2half2_rn(x, y); }
static __device__ __forceinline__ void store(float * to, float x, float y, float z, float w) { *(float4 *) to = make_float4(x, y, z, w); }
static __device__ __forceinline__ void store(half * to, float x, float y, float z, float w) {
    *(uint2 *) to = make_uint2(bits_of(__floats2half2_rn(x, y)), bits_of(__floats2half2_rn(z, w)));
}

// A row of O as the fragments have it, `h`: row g (0) or g + 8 (1), times `by`, to `to` on.
template <int type, int FRAGMENTS, class E> static __device__ __forceinline__ void write_row(const float (&o)[FRAGMENTS][4], int h, float by, E * to, int t) {
    if constexpr (is_quantised(type)) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f += 2) {  // elements 4t to 4t + 3 of 16
            store(to + 8*f + 4*t, o[f][2*h]*by, o[f + 1][2*h]*by, o[f][2*h + 1]*by, o[f + 1][2*h + 1]*by);
        }
    } else {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f) {
            store(to + 8*f + 2*t, o[f][2*h]*by, o[f][2*h + 1]*by);
        }
    }
}

// Two bf16 values as f16.
static __device__ __forceinline__ uint32_t from_bf16(uint32_t pair) {
    return bits_of(__floats2half2_rn(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)));
}

template <int type> static __device__ __forceinline__ void as_f16(uint32_t (&fragment)[4]) {
    if constexpr (type == BF16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            fragment[i] = from_bf16(fragment[i]);
        }
    }
}

}  // namespace pyllm::verify
