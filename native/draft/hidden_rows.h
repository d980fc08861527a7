// Hidden rows of a graph that computes more of them than were asked for.
#pragma once

#include "ggml-backend.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pyllm {

// Copies n_rows hidden rows of `width` floats to `out`. Some graphs keep the rows of all n_tokens of a micro-batch, some of its outputs alone: where
// fewer are wanted than the tensor has, they are those of the outputs.
inline void copy_hidden_rows(ggml_backend_t backend, const ggml_tensor * rows, const int8_t * outputs, uint32_t n_tokens, int64_t n_rows, int64_t width, float * out) {
    const int64_t n_there = ggml_nelements(rows) / width;
    if (n_there <= n_rows || n_there != (int64_t) n_tokens) {
        ggml_backend_tensor_get_async(backend, rows, out, 0, (size_t) (std::min(n_there, n_rows) * width) * sizeof(float));
        return;
    }
    // Backends that split tensors read from the start only.
    std::vector<float> all((size_t) (n_there * width));
    ggml_backend_tensor_get_async(backend, rows, all.data(), 0, all.size() * sizeof(float));
    ggml_backend_synchronize(backend);
    int64_t at = 0;
    for (uint32_t i = 0; i < n_tokens && at < n_rows; ++i) {
        if (outputs[i] != 0) {
            std::memcpy(out + at++ * width, all.data() + (int64_t) i * width, (size_t) width * sizeof(float));
        }
    }
}

} // namespace pyllm
