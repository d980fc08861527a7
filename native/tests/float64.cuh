// Random tensors made on the device, and attention in float64 to compare with; of nothing that the kernels under test use.
#pragma once

#include "common.cuh"

namespace {

const ggml_type kv_types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,  GGML_TYPE_Q5_1,
                               GGML_TYPE_Q5_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL };

// ---------------------------------------------------------------- data, made on the device

__device__ uint32_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    x ^= x >> 33;
    return (uint32_t) x;
}

// About normal: the sum of four uniform numbers, variance one.
__device__ float normal(uint64_t x) {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
        sum += mix(4*x + i)*0x1p-32f - 0.5f;
    }
    return sum*1.7320508f;
}

// Values of a deviation near `by`.
__global__ void fill(char * data, const int type, const int64_t n, const uint64_t seed, const float by) {
    for (int64_t i = blockIdx.x*(int64_t) blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        const uint64_t x = seed*0x9E3779B97F4A7C15ull + i;
        const float    d = by*(0.5f + mix(x)*0x1p-33f);  // half of `by` to `by`
        const auto bytes = [&](uint8_t * to, int count) {
            for (int b = 0; b < count; ++b) {
                to[b] = mix(x*67 + b);
            }
        };
        switch (type) {
            case GGML_TYPE_F32: ((float *) data)[i] = by*normal(x); break;
            case GGML_TYPE_F16: ((half *) data)[i] = __float2half(by*normal(x)); break;
            case GGML_TYPE_BF16: ((nv_bfloat16 *) data)[i] = __float2bfloat16(by*normal(x)); break;
            case GGML_TYPE_Q8_0: { auto & b = ((block_q8_0 *) data)[i]; b.d = __float2half(d/64); bytes((uint8_t *) b.qs, 32); } break;
            case GGML_TYPE_Q4_0: { auto & b = ((block_q4_0 *) data)[i]; b.d = __float2half(d/4); bytes(b.qs, 16); } break;
            case GGML_TYPE_Q4_1: { auto & b = ((block_q4_1 *) data)[i]; b.dm = __floats2half2_rn(d/4, -1.5f*by); bytes(b.qs, 16); } break;
            case GGML_TYPE_Q5_0: { auto & b = ((block_q5_0 *) data)[i]; b.d = __float2half(d/8); bytes(b.qs, 16); bytes(b.qh, 4); } break;
            case GGML_TYPE_Q5_1: { auto & b = ((block_q5_1 *) data)[i]; b.dm = __floats2half2_rn(d/8, -1.5f*by); bytes(b.qs, 16); bytes(b.qh, 4); } break;
            case GGML_TYPE_IQ4_NL: { auto & b = ((block_iq4_nl *) data)[i]; b.d = __float2half(d/64); bytes(b.qs, 16); } break;
        }
    }
}

// kind 0: causal from the end; 1: random blocks and biases; 2: at most n_max columns per row; 3: one column, and all others 9 below it. A share of rows
// sees nothing.
__global__ void fill_mask(half * mask, const int n_kv, const int rows, const int64_t n, const int kind, const int n_max, const float empty_share, const uint64_t seed) {
    for (int64_t i = blockIdx.x*(int64_t) blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        const int64_t row = i / n_kv;
        const int     col = i % n_kv;
        const int     pos = row % rows;
        float         value = 0.0f;
        if (kind == 0) {
            value = col <= n_kv - rows + pos ? 0.0f : -INFINITY;
        } else if (kind == 1) {
            value = mix(seed + row*7919 + col / 64) % 4 == 0 ? -INFINITY : -(float) (mix(seed ^ i) % 4);
        } else if (kind == 3) {
            value = col == (int) (mix(seed + row) % n_kv) ? 0.0f : -9.0f;
        } else {
            const int period = n_kv / n_max;
            value = period > 0 && col % period == (int) (mix(seed + row) % period) && col / period < n_max ? 0.0f : -INFINITY;
        }
        if (mix(seed + 31*row)*0x1p-32f < empty_share) {
            value = -INFINITY;
        }
        mask[i] = __float2half(value);
    }
}

// ---------------------------------------------------------------- the reference, in float64

__device__ double value_of(const char * row, const int type, const int64_t i) {
    const int64_t b = i / 32;
    const int     j = i % 32;
    const int     nibble = j % 16, high = j / 16*4;
    switch (type) {
        case GGML_TYPE_F32: return ((const float *) row)[i];
        case GGML_TYPE_F16: return __half2float(((const half *) row)[i]);
        case GGML_TYPE_BF16: return __bfloat162float(((const nv_bfloat16 *) row)[i]);
        case GGML_TYPE_Q8_0: { const auto & x = ((const block_q8_0 *) row)[b]; return (double) __half2float(x.d)*x.qs[j]; }
        case GGML_TYPE_Q4_0: { const auto & x = ((const block_q4_0 *) row)[b]; return (double) __half2float(x.d)*((x.qs[nibble] >> high & 0xF) - 8); }
        case GGML_TYPE_Q4_1: { const auto & x = ((const block_q4_1 *) row)[b]; return (double) __low2float(x.dm)*(x.qs[nibble] >> high & 0xF) + __high2float(x.dm); }
        case GGML_TYPE_Q5_0: {
            const auto & x = ((const block_q5_0 *) row)[b];
            uint32_t bits;
            memcpy(&bits, x.qh, 4);
            return (double) __half2float(x.d)*(((x.qs[nibble] >> high & 0xF) | (bits >> j & 1) << 4) - 16.0);
        }
        case GGML_TYPE_Q5_1: {
            const auto & x = ((const block_q5_1 *) row)[b];
            uint32_t bits;
            memcpy(&bits, x.qh, 4);
            return (double) __low2float(x.dm)*((x.qs[nibble] >> high & 0xF) | (bits >> j & 1) << 4) + __high2float(x.dm);
        }
        default: {
            const double table[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
            const auto & x = ((const block_iq4_nl *) row)[b];
            return (double) __half2float(x.d)*table[x.qs[nibble] >> high & 0xF];
        }
    }
}

__global__ void dequantise(const char * data, const int type, const int64_t n, double * out) {
    for (int64_t i = blockIdx.x*(int64_t) blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        out[i] = value_of(data, type, i);
    }
}

struct Tensor {
    const char * data;
    int64_t nb0, nb1, nb2, nb3;
    int     type;
};

struct Problem {
    Tensor q, k, v, mask;
    const float * sinks;
    const float * out;
    int d_k, d_v, n_q, n_kv, n_head, n_head_kv, streams, mask_heads, mask_streams;
    double scale, softcap, max_bias;
};

// One block per sampled row of the result; scores[block][n_kv]. Adds |out - ref|^2 and |ref|^2 to sums, and the rows with an error of their own.
__global__ void compare(const Problem p, const int * samples, double * scores, double * sums) {
    const int sample = samples[blockIdx.x];
    const int head   = sample % p.n_head;
    const int row    = sample / p.n_head % p.n_q;
    const int stream = sample / p.n_head / p.n_q;
    const int kv     = head / (p.n_head / p.n_head_kv);
    double *  score  = scores + (int64_t) blockIdx.x*p.n_kv;
    const char * q = p.q.data + row*p.q.nb1 + head*p.q.nb2 + stream*p.q.nb3;

    double slope = 1.0;
    if (p.max_bias > 0.0) {
        const int n2 = 1 << (31 - __clz(p.n_head));
        slope = head < n2 ? pow(pow(2.0, -p.max_bias/n2), head + 1) : pow(pow(2.0, -p.max_bias/2/n2), 2*(head - n2) + 1);
    }
    __shared__ double reduce[256];
    double top = -INFINITY;
    for (int j = threadIdx.x; j < p.n_kv; j += blockDim.x) {
        const char * k = p.k.data + (int64_t) j*p.k.nb1 + kv*p.k.nb2 + stream*p.k.nb3;
        double sum = 0.0;
        for (int i = 0; i < p.d_k; ++i) {
            sum += *(const float *) (q + i*p.q.nb0)*value_of(k, p.k.type, i);
        }
        sum *= p.scale;
        if (p.softcap > 0.0) {
            sum = p.softcap*tanh(sum/p.softcap);
        }
        if (p.mask.data) {
            sum += slope*__half2float(*(const half *) (p.mask.data + j*p.mask.nb0 + row*p.mask.nb1 + head % p.mask_heads*p.mask.nb2 + stream % p.mask_streams*p.mask.nb3));
        }
        score[j] = sum;
        top = max(top, sum);
    }
    const auto all = [&](double x, bool is_max) {
        reduce[threadIdx.x] = x;
        __syncthreads();
        for (int half_width = blockDim.x/2; half_width > 0; half_width /= 2) {
            if (threadIdx.x < half_width) {
                const double y = reduce[threadIdx.x + half_width];
                reduce[threadIdx.x] = is_max ? max(reduce[threadIdx.x], y) : reduce[threadIdx.x] + y;
            }
            __syncthreads();
        }
        x = reduce[0];
        __syncthreads();
        return x;
    };
    top = all(top, true);
    if (p.sinks) {
        top = max(top, (double) p.sinks[head]);
    }
    double total = 0.0;
    for (int j = threadIdx.x; j < p.n_kv; j += blockDim.x) {
        score[j] = score[j] > -INFINITY ? exp(score[j] - top) : 0.0;
        total += score[j];
    }
    total = all(total, false);
    if (p.sinks) {
        total += exp(p.sinks[head] - top);
    }
    double error = 0.0, norm = 0.0;
    for (int i = threadIdx.x; i < p.d_v; i += blockDim.x) {
        double sum = 0.0;
        for (int j = 0; j < p.n_kv; ++j) {
            if (score[j] != 0.0) {
                sum += score[j]*value_of(p.v.data + (int64_t) j*p.v.nb1 + kv*p.v.nb2 + stream*p.v.nb3, p.v.type, i);
            }
        }
        const double want = total > 0.0 ? sum/total : 0.0;
        const double got  = p.out[(((int64_t) stream*p.n_q + row)*p.n_head + head)*p.d_v + i];
        error += (got - want)*(got - want);
        norm  += want*want;
    }
    error = all(error, false);
    norm  = all(norm, false);
    if (threadIdx.x == 0) {
        atomicAdd(&sums[0], error);
        atomicAdd(&sums[1], norm);
    }
}

__global__ void count_nan(const float * data, const int64_t n, unsigned long long * count) {
    for (int64_t i = blockIdx.x*(int64_t) blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x*blockDim.x) {
        if (((const uint32_t *) data)[i] << 1 > 0xFF000000u) {
            atomicAdd(count, 1ull);
        }
    }
}

}  // namespace
