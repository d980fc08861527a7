// Where a llama.cpp graph's attention was put: on the device of its layer, or on the CPU.
#pragma once

#include "ggml-backend.h"

struct ggml_cgraph;

namespace pyllm::route {

// Throws std::runtime_error when `node`, attention of a layer on `device`, was put on the CPU although `device` is a GPU and that was not
// allowed; warns when it was.
void require_gpu(ggml_tensor * node, int layer, ggml_backend_sched_t sched, ggml_backend_dev_t device);

// The same for all fused nodes of a graph ({op, tensor, il}). `kv_on_gpu` false is the user's own --no-kv-offload: nothing to say then.
template <typename Nodes, typename DeviceOfLayer>
void require_gpu(const Nodes & nodes, ggml_backend_sched_t sched, bool kv_on_gpu, const DeviceOfLayer & device_of_layer) {
    for (const auto & node : nodes) {
        if (kv_on_gpu && node.tensor->op == GGML_OP_FLASH_ATTN_EXT) {
            require_gpu(node.tensor, node.il, sched, device_of_layer(node.il));
        }
    }
}

// Counts the attention nodes of a computed graph that ran on the CPU.
void count_cpu_attention(ggml_backend_sched_t sched, ggml_cgraph * graph);

}  // namespace pyllm::route
