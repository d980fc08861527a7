// Attention on a GPU against a float64 reference, over keys drawn from a seed, and its speed beside upstream's dispatcher.
//
//   attention-check sweep SEED FIRST COUNT OUT.json every route that takes a key, poisoned outputs, all outputs looked at for NaN
//   attention-check shapes OUT.json [ROUTE]        the same for the shapes of a list on stdin, with a mask of chunks and sinks
//   attention-check peaks OUT.json [ROUTE]         the same for these shapes with 32768 KV rows, one of them far above all others, and a small V
//   attention-check faults                         nodes that cannot run: a status each time, never an abort
//   attention-check speed OUT.json [ROUTE]         the shapes of a list on stdin: our dispatcher, or one of its routes, and upstream's in turn
#include "common.cuh"
#include "fattn.cuh"

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cuda.h"

#include "route/axes.h"
#include "route/control.h"
#include "route/node.h"
#include "route/route.h"
#include "tests/keys.cuh"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace route = pyllm::route;

// Upstream's fattn.cu, compiled under other names.
void upstream_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
bool upstream_flash_attn_ext_supported(int device, const ggml_tensor * dst);

// faults.cu
int faults();

namespace {

// This program's dequantisation against ggml's on the CPU.
bool check_types(char * scratch) {
    bool good = true;
    for (const ggml_type type : kv_types) {
        const int64_t n      = 4096;
        const size_t  size   = ggml_row_size(type, n);
        double *      device = (double *) (scratch + (1 << 20));
        fill<<<64, 256>>>(scratch, type, n/ggml_blck_size(type), 17, 1.0f);
        dequantise<<<64, 256>>>(scratch, type, n, device);
        std::vector<char>   raw(size);
        std::vector<double> got(n);
        std::vector<float>  want(n);
        CUDA_CHECK(cudaMemcpy(raw.data(), scratch, size, cudaMemcpyDeviceToHost));
        CUDA_CHECK(cudaMemcpy(got.data(), device, n*sizeof(double), cudaMemcpyDeviceToHost));
        if (type == GGML_TYPE_F32) {
            memcpy(want.data(), raw.data(), size);
        } else {
            ggml_get_type_traits(type)->to_float(raw.data(), want.data(), n);
        }
        for (int64_t i = 0; i < n; ++i) {
            good = good && std::abs(got[i] - want[i]) <= 1e-6*std::max(1.0, std::abs(got[i]));
        }
    }
    return good;
}

std::string case_text(const Case & c) {
    char text[512];
    snprintf(text, sizeof(text), "%d/%d gqa %d kv heads %d n_q %d n_kv %d streams %d %s/%s mask %d kind %d n_max %d empty %.1f alibi %d softcap %d sinks %d view %d layout %d scale %.0f v %.3f", c.d_k,
             c.d_v, c.gqa, c.n_head_kv, c.n_q, c.n_kv, c.streams, ggml_type_name(c.type_k), ggml_type_name(c.type_v), c.mask, c.mask_kind, c.n_max, c.empty, c.alibi, c.softcap, c.sinks, c.view,
             c.layout, c.scale_factor, c.v_by);
    return text;
}

// Scores that the float64 reference has room for, of a row.
constexpr int max_scores = 32768;

// A line of a list of shapes: d_k d_v kv_heads gqa n_kv n_q streams, and one type or K's/V's. K and V as llama.cpp's cache, mask f16.
bool read_case(const std::string & line, Case & c) {
    std::istringstream words(line);
    std::string        types;
    c = {};
    if (!(words >> c.d_k >> c.d_v >> c.n_head_kv >> c.gqa >> c.n_kv >> c.n_q >> c.streams >> types)) {
        return false;
    }
    c.type_k = c.type_v = GGML_TYPE_COUNT;
    const size_t      slash = types.find('/');
    const std::string k = types.substr(0, slash), v = slash == std::string::npos ? k : types.substr(slash + 1);
    for (const ggml_type each : kv_types) {
        if (k == ggml_type_name(each)) {
            c.type_k = each;
        }
        if (v == ggml_type_name(each)) {
            c.type_v = each;
        }
    }
    c.mask         = 1;
    c.scale_factor = c.v_by = 1.0f;
    c.view         = c.d_k == 576;
    return c.type_k != GGML_TYPE_COUNT && c.type_v != GGML_TYPE_COUNT;
}

struct Tally {
    int64_t keys = 0, nan = 0, wrong = 0, failed = 0;
    double  worst = 0.0;
};

// `shapes`: these instead of `count` drawn ones.
int sweep(uint64_t seed, int64_t first_key, int64_t count, const char * out_path, const char * only, const std::vector<Case> & shapes = {}) {
    ggml_backend_t        backend = ggml_backend_cuda_init(0);
    ggml_backend_buffer_t arena   = ggml_backend_buft_alloc_buffer(ggml_backend_cuda_buffer_type(0), (size_t) 24 << 30);
    char *                base    = (char *) ggml_backend_buffer_get_base(arena);
    constexpr int         samples = 192;
    int *                 sample_dev;
    double *              scores;
    double *              sums;
    unsigned long long *  nan_dev;
    CUDA_CHECK(cudaMalloc(&sample_dev, samples*sizeof(int)));
    CUDA_CHECK(cudaMalloc(&scores, (size_t) samples*max_scores*sizeof(double)));
    CUDA_CHECK(cudaMalloc(&sums, 2*sizeof(double)));
    CUDA_CHECK(cudaMalloc(&nan_dev, sizeof(unsigned long long)));
    if (!check_types(base)) {
        fprintf(stderr, "error: this program's dequantisation differs from ggml's\n");
        return 1;
    }
    std::map<std::string, Tally> tallies;
    std::vector<std::string>     complaints;
    const auto                   begin = std::chrono::steady_clock::now();
    for (int64_t number = first_key; number < first_key + count; ++number) {
        std::mt19937_64 random(seed*1000003 + number);
        const Case      c = shapes.empty() ? draw(random) : shapes[number - first_key];
        Graph           g;
        build(g, c);
        allocate(g, arena);
        ggml_tensor *node = g.node, *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
        const int      n_head = c.gqa*c.n_head_kv;
        const uint64_t salt   = random();
        // Poison what lies between and behind the tensors too.
        const size_t used = (char *) node->data - base + ggml_backend_buft_get_alloc_size(ggml_backend_cuda_buffer_type(0), node) + (1 << 20);
        CUDA_CHECK(cudaMemset(base, 0xFF, std::min(used, (size_t) 24 << 30)));
        fill_tensor(q, salt);
        fill_tensor(k, salt + 1);
        if (!c.view) {
            fill_tensor(v, salt + 2, c.v_by);
        }
        if (mask) {
            fill_mask<<<1024, 256>>>((half *) mask->data, c.n_kv, c.n_q, ggml_nelements(mask), c.mask_kind, c.n_max, c.empty, salt + 3);
        }
        if (sinks) {
            fill_tensor(sinks, salt + 4);
        }
        std::vector<int> chosen(samples);
        const int64_t    rows = (int64_t) n_head*c.n_q*c.streams;
        for (int i = 0; i < samples; ++i) {
            chosen[i] = rows <= samples ? std::min<int64_t>(i, rows - 1) : random() % rows;
        }
        const int n_samples = (int) std::min<int64_t>(rows, samples);
        CUDA_CHECK(cudaMemcpy(sample_dev, chosen.data(), samples*sizeof(int), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());

        route::Key key{};
        route::device_facts("CUDA0", key);
        route::describe(node, key);
        for (int32_t forced = -1; forced < PYLLM_ROUTE_COUNT; ++forced) {
            if (forced >= 0 && (route::force(key, forced).row < 0 || (only && strcmp(only, route::route_name(forced)) != 0) ||
                                (!only && forced != PYLLM_ROUTE_REFERENCE && route::decide(key).route == forced))) {
                continue;
            }
            if (forced < 0 && only) {
                continue;
            }
            route::force_phase(-1, forced);
            const route::Decision decision = forced < 0 ? route::decide(key) : route::force(key, forced);
            Tally & tally = tallies[std::string(forced < 0 ? "" : "forced ") + route::route_name(decision.route)];
            ++tally.keys;
            CUDA_CHECK(cudaMemset(node->data, 0xFF, ggml_nbytes(node)));
            const bool supported = ggml_backend_supports_op(backend, node);
            const bool computed  = supported && ggml_backend_graph_compute(backend, g.graph) == GGML_STATUS_SUCCESS;
            const cudaError_t error = cudaDeviceSynchronize();
            if (!computed || error != cudaSuccess) {
                ++tally.failed;
                complaints.push_back("failed " + std::to_string(number) + " " + route::route_name(decision.route) + ": " + case_text(c) + " " + cudaGetErrorString(error));
                fprintf(stderr, "%s\n", complaints.back().c_str());
                if (error != cudaSuccess) {
                    return 1;
                }
                continue;
            }
            Problem p{ tensor_of(q), tensor_of(k), tensor_of(v), tensor_of(mask), sinks ? (const float *) sinks->data : nullptr, (const float *) node->data,
                       c.d_k, c.d_v, c.n_q, c.n_kv, n_head, c.n_head_kv, c.streams, mask ? (int) mask->ne[2] : 1, mask ? (int) mask->ne[3] : 1,
                       0.0, c.softcap ? 20.0 : 0.0, c.alibi ? 8.0 : 0.0 };
            float scale;
            memcpy(&scale, node->op_params, sizeof(float));
            p.scale = scale;
            CUDA_CHECK(cudaMemset(sums, 0, 2*sizeof(double)));
            CUDA_CHECK(cudaMemset(nan_dev, 0, sizeof(unsigned long long)));
            compare<<<n_samples, 256>>>(p, sample_dev, scores, sums);
            count_nan<<<1024, 256>>>((const float *) node->data, ggml_nelements(node), nan_dev);
            double             host[2];
            unsigned long long n_nan;
            CUDA_CHECK(cudaMemcpy(host, sums, sizeof(host), cudaMemcpyDeviceToHost));
            CUDA_CHECK(cudaMemcpy(&n_nan, nan_dev, sizeof(n_nan), cudaMemcpyDeviceToHost));
            const double nmse  = host[1] > 0.0 ? host[0]/host[1] : host[0];
            // Our reference computes in f32; our verify kernel rounds Q, K, V and P to f16 and sums in f32. Upstream's kernels compute in f16: the limit of upstream's own test. Its tile kernel also sums in f16
            // (fattn-tile.cuh, VKQ): over 32768 rows of like weight each addition rounds a sum far above its term, over fewer below a peak. Its vector kernel rounds Q to
            // q8_1 before a quantised K, an error of the logits that grows with their scale.
            const bool long_f16_sum = decision.route == PYLLM_ROUTE_TILE && c.n_kv > (c.mask_kind == 3 ? 4096 : 8192);
            const bool rounded_q    = decision.route == PYLLM_ROUTE_VEC && ggml_is_quantized(c.type_k);
            const double limit      = decision.route == PYLLM_ROUTE_REFERENCE ? 1e-8 : decision.route == PYLLM_ROUTE_VERIFY ? 1e-5*c.scale_factor : long_f16_sum ? 2e-3 : rounded_q ? 5e-4*c.scale_factor : 5e-4;
            tally.nan += n_nan > 0;
            tally.wrong += !(nmse <= limit);
            tally.worst = std::max(tally.worst, n_nan ? INFINITY : nmse);
            if (n_nan > 0 || !(nmse <= limit)) {
                char text[128];
                snprintf(text, sizeof(text), " nmse %.3g nan %llu of %lld", nmse, n_nan, (long long) ggml_nelements(node));
                complaints.push_back("wrong " + std::to_string(number) + " " + route::route_name(decision.route) + " " + std::to_string(decision.ncols1) + "x" + std::to_string(decision.ncols2) + ": " +
                                     case_text(c) + text);
            }
        }
        route::force_phase(-1, -1);
    }
    if (!shapes.empty() && only) {
        const int64_t played = tallies["forced " + std::string(only)].keys;
        if (played != count) {
            complaints.push_back("played " + std::to_string(played) + " of " + std::to_string(count) + " shapes: the route does not take the others");
        }
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    FILE * file = fopen(out_path, "w");
    fprintf(file, "{\"seed\": %llu, \"keys\": %lld, \"seconds\": %.1f, \"routes\": {", (unsigned long long) seed, (long long) count, seconds);
    bool first = true, good = shapes.empty() || complaints.empty();
    printf("%-18s %8s %8s %8s %8s %12s\n", "route", "keys", "failed", "nan", "wrong", "worst nmse");
    for (const auto & [name, t] : tallies) {
        fprintf(file, "%s\"%s\": {\"keys\": %lld, \"failed\": %lld, \"nan\": %lld, \"wrong\": %lld, \"worst_nmse\": %.4g}", first ? "" : ", ", name.c_str(), (long long) t.keys, (long long) t.failed,
                (long long) t.nan, (long long) t.wrong, t.worst);
        printf("%-18s %8lld %8lld %8lld %8lld %12.3g\n", name.c_str(), (long long) t.keys, (long long) t.failed, (long long) t.nan, (long long) t.wrong, t.worst);
        good = good && t.failed + t.nan + t.wrong == 0;
        first = false;
    }
    fprintf(file, "}}\n");
    fclose(file);
    for (size_t i = 0; i < std::min<size_t>(complaints.size(), 40); ++i) {
        printf("%s\n", complaints[i].c_str());
    }
    printf("%lld keys in %.1f s, %zu complaints\n", (long long) count, seconds, complaints.size());
    return good ? 0 : 1;
}

// ---------------------------------------------------------------- speed

// Lines of stdin: d_k d_v kv_heads gqa n_kv n_q streams type. K and V as llama.cpp's cache, mask f16.
int speed(const char * out_path, const char * only) {
    ggml_backend_t              backend = ggml_backend_cuda_init(0);
    ggml_backend_cuda_context & ctx     = *(ggml_backend_cuda_context *) backend->context;
    ggml_backend_buffer_t       arena   = ggml_backend_buft_alloc_buffer(ggml_backend_cuda_buffer_type(0), (size_t) 60 << 30);
    const int32_t               forced  = only ? route::route_from_name(only) : -1;
    if (only && forced < 0) {
        fprintf(stderr, "error: `%s` is no route\n", only);
        return 2;
    }
    FILE *                      file    = fopen(out_path, "w");
    fprintf(file, "[");
    std::string line;
    bool        first = true;
    printf("%-44s %-14s %9s %9s %9s %7s %7s\n", "shape", "route", "upstream", "again", "ours us", "ratio", "noise");
    while (std::getline(std::cin, line)) {
        Case c;
        if (!read_case(line, c)) {
            continue;
        }
        const size_t bytes   = (ggml_row_size(c.type_k, c.d_k) + ggml_row_size(c.type_v, c.d_v))*c.n_kv*c.n_head_kv*c.streams;
        const int    n_nodes = (int) std::clamp<size_t>((600u << 20)/bytes + 1, 2, 64);
        std::vector<Graph> graphs(n_nodes);
        ggml_tallocr       alloc = ggml_tallocr_new(arena);
        for (int i = 0; i < n_nodes; ++i) {
            build(graphs[i], c);
            for (ggml_tensor * t = ggml_get_first_tensor(graphs[i].ctx); t; t = ggml_get_next_tensor(graphs[i].ctx, t)) {
                if (t->view_src == nullptr) {
                    ggml_tallocr_alloc(&alloc, t);
                    if (t->op == GGML_OP_NONE && t->type != GGML_TYPE_F16) {
                        fill_tensor(t, i*16);
                    }
                } else {
                    ggml_backend_view_init(t);
                }
            }
            fill_tensor(graphs[i].node->src[1], i*16 + 1);
            fill_tensor(graphs[i].node->src[2], i*16 + 2);
            fill_mask<<<1024, 256>>>((half *) graphs[i].node->src[3]->data, c.n_kv, c.n_q, ggml_nelements(graphs[i].node->src[3]), 0, 0, 0.0f, 1);
        }
        CUDA_CHECK(cudaDeviceSynchronize());
        route::Key key{};
        route::device_facts("CUDA0", key);
        route::describe(graphs[0].node, key);
        const route::Decision d = forced < 0 ? route::decide(key) : route::force(key, forced);
        if (d.row < 0) {
            continue;
        }
        route::force_phase(-1, forced);
        const bool served = upstream_flash_attn_ext_supported(0, graphs[0].node);
        const auto compute = [&](bool ours) {
            for (Graph & g : graphs) {
                ours ? ggml_cuda_flash_attn_ext(ctx, g.node) : upstream_flash_attn_ext(ctx, g.node);
            }
        };
        // As a decode step runs: a captured graph, so that the time is not that of launches.
        const auto captured = [&](bool ours) {
            compute(ours);
            CUDA_CHECK(cudaStreamSynchronize(ctx.stream()));
            cudaGraph_t     graph;
            cudaGraphExec_t exec;
            CUDA_CHECK(cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeRelaxed));
            compute(ours);
            CUDA_CHECK(cudaStreamEndCapture(ctx.stream(), &graph));
            CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
            CUDA_CHECK(cudaGraphDestroy(graph));
            return exec;
        };
        const cudaGraphExec_t passes[] = { served ? captured(false) : nullptr, captured(true) };
        const auto            run      = [&](bool ours) {
            cudaEvent_t from, to;
            CUDA_CHECK(cudaEventCreate(&from));
            CUDA_CHECK(cudaEventCreate(&to));
            CUDA_CHECK(cudaEventRecord(from, ctx.stream()));
            CUDA_CHECK(cudaGraphLaunch(passes[ours], ctx.stream()));
            CUDA_CHECK(cudaEventRecord(to, ctx.stream()));
            CUDA_CHECK(cudaEventSynchronize(to));
            float ms;
            CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
            CUDA_CHECK(cudaEventDestroy(from));
            CUDA_CHECK(cudaEventDestroy(to));
            return 1000.0*ms/n_nodes;
        };
        std::vector<double> theirs, again, ours;
        const int           rounds = 25;
        for (int i = 0; i < rounds + 5; ++i) {
            for (int turn = 0; turn < 3; ++turn) {
                const int which = (i + turn) % 3;
                if (which != 2 && !served) {
                    continue;
                }
                const double us = run(which == 2);
                if (i >= 5) {
                    (which == 0 ? theirs : which == 1 ? again : ours).push_back(us);
                }
            }
        }
        for (const cudaGraphExec_t pass : passes) {
            if (pass != nullptr) {
                CUDA_CHECK(cudaGraphExecDestroy(pass));
            }
        }
        const auto median = [](std::vector<double> & list) {
            if (list.empty()) {
                return 0.0;
            }
            std::nth_element(list.begin(), list.begin() + list.size()/2, list.end());
            return list[list.size()/2];
        };
        const double a = median(theirs), b = median(again), o = median(ours);
        const std::string     name = std::string(route::route_name(d.route)) + (d.ncols1 ? " " + std::to_string(d.ncols1) + "x" + std::to_string(d.ncols2) : "");
        printf("%-44s %-14s %9.2f %9.2f %9.2f %7.3f %7.3f\n", line.c_str(), name.c_str(), a, b, o, served ? o/std::min(a, b) : 0.0, served ? std::max(a, b)/std::min(a, b) : 0.0);
        fprintf(file, "%s\n{\"shape\": \"%s\", \"route\": \"%s\", \"bytes\": %zu, \"upstream_us\": %.3f, \"upstream_again_us\": %.3f, \"ours_us\": %.3f}", first ? "" : ",", line.c_str(), name.c_str(), bytes, a, b, o);
        first = false;
    }
    fprintf(file, "\n]\n");
    fclose(file);
    return 0;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc >= 6 && strcmp(argv[1], "sweep") == 0) {
        return sweep(strtoull(argv[2], nullptr, 10), atoll(argv[3]), atoll(argv[4]), argv[5], argc > 6 ? argv[6] : nullptr);
    }
    const bool peaks = argc > 1 && strcmp(argv[1], "peaks") == 0;
    if ((argc == 3 || argc == 4) && (peaks || strcmp(argv[1], "shapes") == 0)) {
        std::vector<Case> shapes;
        std::string       line;
        for (Case c; std::getline(std::cin, line);) {
            if (!read_case(line, c) || c.n_kv > max_scores) {
                fprintf(stderr, "error: `%s` is no shape of at most %d KV rows\n", line.c_str(), max_scores);
                return 2;
            }
            if (peaks) {
                c.n_kv      = max_scores;
                c.mask_kind = 3;
                c.v_by      = 1.0f/64;
            } else {
                c.mask_kind = 1;
                c.sinks     = true;
            }
            shapes.push_back(c);
        }
        if (shapes.empty()) {
            fprintf(stderr, "error: there are no shapes on stdin\n");
            return 2;
        }
        return sweep(1, 0, (int64_t) shapes.size(), argv[2], argc > 3 ? argv[3] : nullptr, shapes);
    }
    if ((argc == 3 || argc == 4) && strcmp(argv[1], "speed") == 0) {
        return speed(argv[2], argc > 3 ? argv[3] : nullptr);
    }
    if (argc == 2 && strcmp(argv[1], "faults") == 0) {
        return faults();
    }
    fprintf(stderr, "error: %d arguments are not understood\n\nhint: attention-check sweep SEED FIRST COUNT OUT.json [ROUTE], or attention-check shapes|peaks|speed OUT.json [ROUTE] < SHAPES\n", argc - 1);
    return 2;
}
