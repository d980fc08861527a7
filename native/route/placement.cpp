#include "route/placement.h"

#include "crash/record.h"
#include "route/control.h"
#include "route/node.h"

#include "ggml.h"

#include <cstdio>
#include <stdexcept>
#include <string>

namespace pyllm::route {

static bool on_cpu(ggml_backend_sched_t sched, ggml_tensor * node) {
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(sched, node);
    return backend != nullptr && ggml_backend_dev_type(ggml_backend_get_device(backend)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

void require_gpu(ggml_tensor * node, int layer, ggml_backend_sched_t sched, ggml_backend_dev_t device) {
    if (device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU || !on_cpu(sched, node)) {
        return;
    }
    const std::string text = "attention of layer " + std::to_string(layer) + ", which is on " + ggml_backend_dev_name(device) +
                             ", would run on the CPU: the backend declines " + node_text(node);
    if (!cpu_allowed()) {
        throw std::runtime_error(text + "; allow it with --allow-cpu-attention, or choose other KV types");
    }
    fprintf(stderr, "warning: %s\n", text.c_str());
}

void count_cpu_attention(ggml_backend_sched_t sched, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_FLASH_ATTN_EXT && on_cpu(sched, node)) {
            const int32_t phase = phase_of((int32_t) node->src[0]->ne[1]);
            count("CPU", -1, phase);
            crash::record_attention("CPU", phase, Decision(), node);
        }
    }
}

}  // namespace pyllm::route
