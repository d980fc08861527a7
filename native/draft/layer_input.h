// A tap on a layer's input, in a graph that may not have one.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

struct ggml_tensor;
struct llama_context;

namespace pyllm {

// While a graph is built: throws std::runtime_error where it lacks a tapped input.
inline void require_layer_input(const ggml_tensor * input, size_t layer) {
    if (input == nullptr) {
        throw std::runtime_error("this architecture's graph does not hand out the input of layer " + std::to_string(layer));
    }
}

// After taps were switched on: builds one graph, which throws as above. Nothing is computed.
void probe_layer_inputs(llama_context * ctx);

} // namespace pyllm
