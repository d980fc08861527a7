#include "draft/layer_input.h"

#include "../src/llama-ext.h" // llama_graph_reserve

namespace pyllm {

void probe_layer_inputs(llama_context * ctx) {
    const uint32_t n = llama_n_seq_max(ctx); // caches of their own per sequence need a token for each
    llama_graph_reserve(ctx, n, n, n);
}

} // namespace pyllm
