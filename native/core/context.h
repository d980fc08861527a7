#pragma once

#include "core/trace.h"
#include "pyllm.h"

#include "common.h"
#include "llama.h"

#include <atomic>
#include <memory>
#include <vector>

namespace pyllm {

struct context_state {
    std::shared_ptr<llama_model> model;
    std::unique_ptr<common_threadpools> threadpools; // freed after the context that uses them
    llama_context *   ctx = nullptr;
    trace_log         trace;
    bool              tracing = false;
    bool              has_mtp = false; // the model's prediction heads were loaded
    std::atomic<bool> cancelled{false};
    int32_t           n_threads       = 0;
    int32_t           n_threads_batch = 0;
    int32_t           rollback        = PYLLM_ROLLBACK_NONE;
    bool              kv_unified      = false;
    ggml_type         type_k          = GGML_TYPE_F16;
    ggml_type         type_v          = GGML_TYPE_F16;
    std::vector<bool> outputs;   // of the last decode, by batch index: which entries have logits
    int32_t           n_rows = 0; // of the last decode
    std::vector<bool> layer_inputs; // taps that are on
    bool              nextn = false;
    bool              nextn_masked = false; // of outputs alone
    std::vector<uint64_t> device_states; // by sequence: number of the state that lies on the device, 0 for none
    uint64_t          n_device_states = 0;

    ~context_state();
    void check_seq(int32_t seq) const;
    void check_output(int32_t index) const;
    llama_memory_t memory() const;
};

// Switches the tap of a layer's input; throws UNSUPPORTED, with the tap off again, where the architecture's graph has none.
void enable_layer_input(context_state & state, int32_t layer, bool enable);

} // namespace pyllm

// A share of the context: drafters hold their own, so closing the handle first is safe.
struct pyllm_context {
    std::shared_ptr<pyllm::context_state> state;
};
