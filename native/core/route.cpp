#include "core/error.h"
#include "route/axes.h"
#include "route/control.h"
#include "route/route.h"

#include "ggml-backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

using namespace pyllm;

static route::Key key_of(const pyllm_route_key * key) {
    route::Key out;
    std::memcpy(out.data(), not_null(key, "key")->axis, sizeof(key->axis));
    return out;
}

// The table that PYLLM_ROUTES names is read when the first decision is asked for.
static std::shared_ptr<const route::Table> table_in_force() {
    try {
        return route::current();
    } catch (const std::runtime_error & problem) {
        throw failure(PYLLM_INVALID_ARGUMENT, problem.what(), "`pyllm routes check FILE` looks at a table; unset PYLLM_ROUTES for the built-in one");
    }
}

static void check_route(int32_t route) {
    require(route >= 0 && route < PYLLM_ROUTE_COUNT, PYLLM_INVALID_ARGUMENT, format("route %d is not in [0, %d)", route, PYLLM_ROUTE_COUNT));
}

static void write(pyllm_route_decision * out, const route::Decision & decision) {
    *not_null(out, "decision") = { decision.row, decision.route, decision.ncols1, decision.ncols2 };
}

extern "C" {

pyllm_status pyllm_route_table_set(const char * text, size_t length) {
    return guard([&] {
        route::Problem         problem;
        const std::string_view given = text == nullptr || length == 0 ? route::default_text() : std::string_view(text, length);
        auto                   table = route::Table::parse(given, problem);
        require(table != nullptr, PYLLM_INVALID_ARGUMENT, "route table, " + problem.message, problem.hint);
        route::set_current(std::move(table));
    });
}

pyllm_status pyllm_route_table_get_default(char * text, size_t capacity, size_t * length) {
    return guard([&] { copy_text(std::string(route::default_text()), text, capacity, length); });
}

pyllm_status pyllm_route_table_count(int32_t * n_rows) {
    return guard([&] { *not_null(n_rows, "n_rows") = (int32_t) table_in_force()->rows().size(); });
}

pyllm_status pyllm_route_decide(const pyllm_route_key * key, pyllm_route_decision * decision, int32_t * failed, size_t capacity) {
    return guard([&] {
        const auto            table = table_in_force();
        const route::Key      codes = key_of(key);
        const route::Decision made  = route::decide(codes);
        write(decision, made);
        for (size_t row = 0; failed != nullptr && row < capacity && row < table->rows().size(); ++row) {
            failed[row] = table->first_failing(table->rows()[row], codes);
        }
    });
}

pyllm_status pyllm_route_force_key(const pyllm_route_key * key, int32_t wanted, pyllm_route_decision * decision) {
    return guard([&] {
        check_route(wanted);
        table_in_force();
        const route::Key      codes = key_of(key);
        const route::Decision made  = route::force(codes, wanted);
        require(made.row >= 0, PYLLM_UNSUPPORTED, format("route `%s` cannot run this node: ", route::route_name(wanted)) + route::why_not(codes, wanted),
                "let the table choose, or force another route");
        write(decision, made);
    });
}

pyllm_status pyllm_route_force(int32_t phase, int32_t wanted) {
    return guard([&] {
        require(phase >= -1 && phase < PYLLM_PHASE_COUNT, PYLLM_INVALID_ARGUMENT, format("phase %d is not in [-1, %d)", phase, PYLLM_PHASE_COUNT));
        if (wanted != -1) {
            check_route(wanted);
        }
        route::force_phase(phase, wanted);
    });
}

void pyllm_route_allow_cpu(bool allow) {
    route::allow_cpu(allow);
}

pyllm_status pyllm_route_block(int32_t arch, int32_t row) {
    return guard([&] {
        const int32_t n_rows = (int32_t) table_in_force()->rows().size();
        require(row >= -1 && row < n_rows - 1, PYLLM_INVALID_ARGUMENT, format("row %d is not in [-1, %d)", row, n_rows - 1), "the last row cannot be taken out");
        if (row < 0) {
            route::unblock_all();
        } else {
            route::block(arch, row);
        }
    });
}

pyllm_status pyllm_route_benchmark(const pyllm_route_key * keys, size_t n, double * ns_seen, double * ns_new) {
    return guard([&] {
        require(n > 0, PYLLM_INVALID_ARGUMENT, "no keys", "give at least one");
        using clock = std::chrono::steady_clock;
        std::vector<route::Key> list;
        for (size_t i = 0; i < n; ++i) {
            list.push_back(key_of(not_null(keys, "keys") + i));
        }
        constexpr int rounds = 200;
        int64_t       sum    = 0;
        const auto    span   = [&](clock::time_point begin, size_t decisions) {
            return std::chrono::duration<double, std::nano>(clock::now() - begin).count() / (double) decisions;
        };
        // A fresh value of an axis that no row reads (rows of K, in steps that keep its class) makes a key that was never seen.
        for (const route::Key & key : list) {
            sum += route::decide(key).row;
        }
        auto begin = clock::now();
        for (int round = 0; round < rounds; ++round) {
            for (route::Key & key : list) {
                key[PYLLM_ROUTE_N_KV] += 1 << 18;
                sum += route::decide(key).row;
            }
        }
        *not_null(ns_new, "ns_new") = span(begin, rounds * n);
        const size_t few = std::min<size_t>(n, 64); // as many kinds of nodes as a model has at most
        for (size_t i = 0; i < few; ++i) {
            sum += route::decide(list[i]).row;
        }
        begin = clock::now();
        for (int round = 0; round < rounds; ++round) {
            for (size_t i = 0; i < few; ++i) {
                sum += route::decide(list[i]).row;
            }
        }
        *not_null(ns_seen, "ns_seen") = span(begin, rounds * few);
        require(sum >= 0, PYLLM_INTERNAL, "a key without a row");
    });
}

pyllm_status pyllm_route_counts(pyllm_route_count * counts, size_t capacity, size_t * count) {
    return guard([&] {
        const auto list = route::counts();
        *not_null(count, "count") = list.size();
        std::copy_n(list.begin(), std::min(capacity, list.size()), counts);
    });
}

pyllm_status pyllm_route_device(int32_t index, pyllm_route_key * key) {
    return guard([&] {
        require(index >= 0 && (size_t) index < ggml_backend_dev_count(), PYLLM_INVALID_ARGUMENT,
                format("device %d is not in [0, %zu)", index, ggml_backend_dev_count()));
        const char * name  = ggml_backend_dev_name(ggml_backend_dev_get((size_t) index));
        route::Key   codes{};
        require(route::device_facts(name, codes), PYLLM_UNSUPPORTED, format("%s is no CUDA or HIP device", name),
                "simulate one: `pyllm routes explain --device sm_90`");
        std::memcpy(not_null(key, "key")->axis, codes.data(), sizeof(key->axis));
    });
}

}  // extern "C"
