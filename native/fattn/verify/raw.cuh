// Quants as they are in the matrix units: a nibble or a byte is the mantissa of a subnormal f16, u 2^-24, which takes one instruction a pair and is exact.
//
// What a quant stands for is d (u - OFFSET). The offset and the power of two leave the products:
//
//   K  for each block of 32 columns, products begin at -OFFSET times the sum of Q over these, and d weighs what they come to, in f32
//   V  d weighs P, and OFFSET times the sum of P d over the KV rows is taken from O at the end
//
// A high nibble is not shifted down, so it is 16 u 2^-24: Q is stored times 4 for the low ones and divided by 4 for the high ones.
#pragma once

#include "fattn/verify/kv.cuh"

namespace pyllm::verify {

template <int type> struct Raw {
    static_assert(type == Q8_0 || type == Q4_0, "a scale and an offset that is the same for all blocks");
    static constexpr bool  NIBBLES = type == Q4_0;
    static constexpr float OFFSET = NIBBLES ? 8.0f : 128.0f;
    // Factors of Q for the first and last 16 columns of a block, and what the products' unit is then.
    static constexpr float Q_FIRST = NIBBLES ? 4.0f : 1.0f, Q_LAST = NIBBLES ? 0.25f : 1.0f;
    static constexpr float K_UNIT = NIBBLES ? 0x1p22f : 0x1p24f;
    static constexpr float V_FIRST = 0x1p24f, V_LAST = NIBBLES ? 0x1p20f : 0x1p24f;
    // -OFFSET as a pair of quants, in the first and the last columns.
    static constexpr uint32_t LESS_FIRST = NIBBLES ? 0x80088008u : 0x80808080u, LESS_LAST = 0x80808080u;
    // P begins at 2^LIFT and is kept below 2^(LIFT + RAISE). P d is f16: it must not exceed that where no element of V does, and small ones should not be
    // subnormal, since their rounding would be multiplied by quants that are all positive; tests/routes/test_verify.py has the arithmetic.
    static constexpr float LIFT = NIBBLES ? 1.0f : 5.0f, RAISE = 1.9f;

    // The eight quants of a lane as four pairs, as `decode` has them.
    static __device__ __forceinline__ void pairs(uint32_t word, uint32_t high, uint32_t (&to)[4]) {
        if constexpr (NIBBLES) {
            const uint32_t next = word >> 8;
            to[0] = word & 0x000F000Fu;
            to[1] = next & 0x000F000Fu;
            to[2] = word & 0x00F000F0u;
            to[3] = next & 0x00F000F0u;
        } else {
            word ^= 0x80808080u;
            high ^= 0x80808080u;
            to[0] = __byte_perm(word, 0, 0x4240);
            to[1] = __byte_perm(word, 0, 0x4341);
            to[2] = __byte_perm(high, 0, 0x4240);
            to[3] = __byte_perm(high, 0, 0x4341);
        }
    }

    // Block `b` of the row of K that begins at `row`, bytes 4t to 4t + 3; returns its scale.
    template <bool b_is_odd> static __device__ __forceinline__ float load_k(const char * row, int b, int t, uint32_t (&to)[4]) {
        const char *   block   = row + b*block_bytes(type);
        constexpr bool aligned = (quants_at<type>() + (b_is_odd ? block_bytes(type) : 0)) % 4 == 0;
        const char *   quants  = block + quants_at<type>() + 4*t;
        pairs(word<aligned>(quants), NIBBLES ? 0 : word<aligned>(quants + 16), to);
        return __half2float(*(const half *) block);
    }

    // Block `b` of the rows of V that begin at `row0` and `row1`, bytes 2g and 2g + 1 of both; returns their scales.
    static __device__ __forceinline__ half2 load_v(const char * row0, const char * row1, int b, int g, uint32_t (&to)[4]) {
        const char * block0 = row0 + b*block_bytes(type);
        const char * block1 = row1 + b*block_bytes(type);
        const char * quants0 = block0 + quants_at<type>() + 2*g;
        const char * quants1 = block1 + quants_at<type>() + 2*g;
        pairs(__byte_perm(half_word(quants0), half_word(quants1), 0x5410), NIBBLES ? 0 : __byte_perm(half_word(quants0 + 16), half_word(quants1 + 16), 0x5410), to);
        return half2_of(__byte_perm(half_word(block0), half_word(block1), 0x5410));
    }
};

}  // namespace pyllm::verify
