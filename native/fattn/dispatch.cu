// Attention on GPUs, in place of upstream's fattn.cu: what is supported, how much scratch it needs and what runs it are one decision of the
// route table (native/route). Upstream's kernels are called by their instances, so the table chooses their tiles too.
#include "common.cuh"
#include "fattn-common.cuh"
#include "fattn-mma-f16.cuh"
#include "fattn-tile.cuh"
#include "fattn-vec.cuh"
#include "fattn.cuh"

#include "fattn/reference.cuh"
#include "fattn/verify/verify.cuh"
#include "crash/record.h"
#include "route/control.h"
#include "route/node.h"
#include "route/route.h"

#include <algorithm>
#include <cstdlib>

namespace route = pyllm::route;

typedef void (*case_t)(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// ---------------------------------------------------------------- upstream's instances

#define MMA_INSTANCE(DKQ, DV, ncols1, ncols2) extern DECL_FATTN_MMA_F16_CASE(DKQ, DV, ncols1, ncols2);
#include "fattn/instances.inc"
#undef MMA_INSTANCE

static case_t mma_case(int64_t d_k, int64_t d_v, int ncols1, int ncols2) {
#define MMA_INSTANCE(DKQ, DV, NCOLS1, NCOLS2)                                       \
    if (d_k == DKQ && d_v == DV && ncols1 == NCOLS1 && ncols2 == NCOLS2) {          \
        return ggml_cuda_flash_attn_ext_mma_f16_case<DKQ, DV, NCOLS1, NCOLS2>;      \
    }
#include "fattn/instances.inc"
#undef MMA_INSTANCE
    return nullptr;
}

#define VEC_CASES(K, V)                                                                                              \
    if constexpr (GGML_CUDA_FA_##K##_##V) {                                                                          \
        if (type_k == GGML_TYPE_##K && type_v == GGML_TYPE_##V) {                                                    \
            return d == 64  ? (case_t) ggml_cuda_flash_attn_ext_vec_case<64, GGML_TYPE_##K, GGML_TYPE_##V>  :       \
                   d == 128 ? (case_t) ggml_cuda_flash_attn_ext_vec_case<128, GGML_TYPE_##K, GGML_TYPE_##V> :       \
                   d == 256 ? (case_t) ggml_cuda_flash_attn_ext_vec_case<256, GGML_TYPE_##K, GGML_TYPE_##V> : nullptr; \
        }                                                                                                            \
    }
#define VEC_TYPES(V) VEC_CASES(F16, V) VEC_CASES(BF16, V) VEC_CASES(Q4_0, V) VEC_CASES(Q4_1, V) VEC_CASES(Q5_0, V) VEC_CASES(Q5_1, V) VEC_CASES(Q8_0, V)

static case_t vec_instance(int64_t d, ggml_type type_k, ggml_type type_v) {
    VEC_TYPES(F16) VEC_TYPES(BF16) VEC_TYPES(Q4_0) VEC_TYPES(Q4_1) VEC_TYPES(Q5_0) VEC_TYPES(Q5_1) VEC_TYPES(Q8_0)
    return nullptr;
}

// The vector kernel that reads K and V as they are, or else as f16.
static case_t vec_case(const ggml_tensor * dst) {
    const auto   as_read = [](const ggml_tensor * t) { return t->type == GGML_TYPE_F32 ? GGML_TYPE_F16 : t->type; };
    const case_t direct  = vec_instance(dst->src[0]->ne[0], as_read(dst->src[1]), as_read(dst->src[2]));
    return direct != nullptr ? direct : vec_instance(dst->src[0]->ne[0], GGML_TYPE_F16, GGML_TYPE_F16);
}

// ---------------------------------------------------------------- decisions

static int32_t matrix_units(int cc) {
    enum { none, volta, turing, ampere, mfma, wmma };
    return ampere_mma_available(cc) ? ampere : turing_mma_available(cc) ? turing : volta_mma_available(cc) ? volta : amd_mfma_available(cc) ? mfma : amd_wmma_available(cc) ? wmma : none;
}

static void fill_device(int device, route::Key & key) {
    const auto & info            = ggml_cuda_info().devices[device];
    key[PYLLM_ROUTE_VENDOR]      = GGML_CUDA_CC_IS_AMD(info.cc);
    key[PYLLM_ROUTE_ARCH]        = info.cc;
    key[PYLLM_ROUTE_MATRIX]      = matrix_units(info.cc);
    key[PYLLM_ROUTE_FAST_FP16]   = fast_fp16_available(info.cc);
    key[PYLLM_ROUTE_SMEM]        = (int32_t) std::max(info.smpb, info.smpbo);
}

[[maybe_unused]] static const bool facts_are_set = [] {
    route::set_device_facts([](const char * name, route::Key & key) {
        const size_t prefix = strlen(GGML_CUDA_NAME);
        if (strncmp(name, GGML_CUDA_NAME, prefix) != 0) {
            return false;
        }
        const int device = atoi(name + prefix);
        if (device < 0 || device >= ggml_cuda_info().device_count) {
            return false;
        }
        fill_device(device, key);
        return true;
    });
    return true;
}();

struct Choice {
    route::Key      key{};
    route::Decision decision;
    std::string     problem;  // why nothing may run the node; empty if something may
};

static Choice choose(int device, const ggml_tensor * dst) {
    Choice choice;
    choice.problem = route::contradiction(dst);
    if (!choice.problem.empty()) {
        choice.problem = "its tensors contradict each other: " + choice.problem;
        return choice;
    }
    fill_device(device, choice.key);
    route::describe(dst, choice.key);
    const int32_t phase  = route::phase_of(choice.key[PYLLM_ROUTE_N_Q]);
    const int32_t forced = route::forced(phase);
    choice.decision      = forced < 0 ? route::decide(choice.key) : route::force(choice.key, forced);
    if (choice.decision.row < 0) {
        choice.problem = forced < 0 ? "no row of the route table takes it" :
                                      std::string("route `") + route::route_name(forced) + "` is forced and cannot run it: " + route::why_not(choice.key, forced);
    }
    return choice;
}

// The decision that the kernels below are being launched for: upstream's host code asks back.
static thread_local route::Decision running;
static thread_local bool            no_room = false;

bool pyllm_fattn_no_room(int blocks_per_sm) {
    // Tests take the room away: the route named here finds none.
    static const char * const taken = getenv("PYLLM_TEST_NO_ROOM");
    no_room = blocks_per_sm < 1 || (taken != nullptr && strcmp(taken, route::route_name(running.route)) == 0);
    return no_room;
}

bool ggml_cuda_flash_attn_ext_mma_f16_shall_use_sparse(const int, const ggml_tensor *, const int, const int) {
    return running.route == PYLLM_ROUTE_SPARSE;
}

// False when the kernel found no room on the device.
static bool launch(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const route::Decision & decision) {
    running = decision;
    no_room = false;
    switch (decision.route) {
        case PYLLM_ROUTE_VEC: vec_case(dst)(ctx, dst); break;
        case PYLLM_ROUTE_TILE: ggml_cuda_flash_attn_ext_tile(ctx, dst); break;
        case PYLLM_ROUTE_MMA:
        case PYLLM_ROUTE_SPARSE: mma_case(dst->src[1]->ne[0], dst->src[2]->ne[0], decision.ncols1, decision.ncols2)(ctx, dst); break;
        case PYLLM_ROUTE_VERIFY: pyllm_fattn_verify(ctx, dst); break;
        default: pyllm_fattn_reference(ctx, dst);
    }
    return !no_room;
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    ggml_cuda_set_device(ctx.device);
    while (true) {
        const Choice choice = choose(ctx.device, dst);
        if (!choice.problem.empty()) {
            // pyllm_fattn_check_graph has refused such graphs; whoever computes nodes without it gets NaN, not something that looks like a result.
            GGML_LOG_ERROR("attention node %s: %s\n", route::node_text(dst).c_str(), choice.problem.c_str());
            CUDA_CHECK(cudaMemsetAsync(dst->data, 0xFF, ggml_nbytes(dst), ctx.stream()));
            return;
        }
        if (launch(ctx, dst, choice.decision)) {
            return;
        }
        const bool forced = route::forced(route::phase_of(choice.key[PYLLM_ROUTE_N_Q])) >= 0;
        GGML_LOG_WARN("attention route %s %dx%d finds no room on device %d: %s\n", route::route_name(choice.decision.route), choice.decision.ncols1,
                      choice.decision.ncols2, ctx.device, forced ? "it is forced, so the node fails" : "the next route of the table runs from now on");
        if (forced) {
            CUDA_CHECK(cudaMemsetAsync(dst->data, 0xFF, ggml_nbytes(dst), ctx.stream()));
            return;
        }
        route::block(choice.key[PYLLM_ROUTE_ARCH], choice.decision.row);
    }
}

bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor *) {
#ifndef FLASH_ATTN_AVAILABLE
    return false;  // GGML_CUDA_FA=OFF: the build has no kernels
#endif
    // The table is total, and a node that contradicts itself has to fail its graph rather than to be sent to the CPU, which would abort on it.
    // Tests make the backend decline, to see what happens to attention on the CPU.
    static const bool declines = getenv("PYLLM_TEST_DECLINE_ATTENTION") != nullptr;
    return !declines;
}

size_t ggml_cuda_flash_attn_ext_get_alloc_size(int device, const ggml_tensor * dst) {
    const Choice choice = choose(device, dst);
    if (!choice.problem.empty() || choice.decision.route == PYLLM_ROUTE_REFERENCE) {
        return ggml_nbytes(dst);
    }
    // Room for K and V as f16 whatever the route: when a route is forced, or found to have no room, after the graph was allocated, the one that
    // runs instead may convert. The prefill graph reserves as much, so this costs a decode graph nothing.
    return ggml_cuda_flash_attn_ext_get_f16_extra_data(dst, true, true).end - (uintptr_t) dst->data;
}

// FLASH_ATTN_EXT uses the first five.
static constexpr uint32_t decision_param = GGML_MAX_OP_PARAMS / sizeof(int32_t) - 1;

bool pyllm_fattn_check_graph(int device, const ggml_cgraph * cgraph) {
    const std::string name = std::string(GGML_CUDA_NAME) + std::to_string(device);
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        ggml_tensor * node = cgraph->nodes[i];
        if (node->op != GGML_OP_FLASH_ATTN_EXT || ggml_is_empty(node)) {
            continue;
        }
        const Choice choice = choose(device, node);
        if (!choice.problem.empty()) {
            GGML_LOG_ERROR("attention node cannot run on %s: %s; node %s\n", name.c_str(), choice.problem.c_str(), route::node_text(node).c_str());
            return false;
        }
        // A captured CUDA graph is replayed while its nodes keep their parameters: with the decision among them, one that was captured before a
        // route was forced, blocked or its table changed is captured anew.
        ggml_set_op_params_i32(node, decision_param, choice.decision.row);
        const int32_t phase = route::phase_of(choice.key[PYLLM_ROUTE_N_Q]);
        route::count(name.c_str(), choice.decision.route, phase);
        pyllm::crash::record_attention(name.c_str(), phase, choice.decision, node);
        if (route::tracing()) {
            route::trace(name.c_str(), std::string(route::phase_name(phase)) + " " + route::route_name(choice.decision.route) + " " +
                                           std::to_string(choice.decision.ncols1) + "x" + std::to_string(choice.decision.ncols2) + " row " +
                                           std::to_string(choice.decision.row) + " " + route::key_text(choice.key));
        }
    }
    return true;
}
