// The kernel of an instance, by its place in INSTANCES: each file of this folder compiles those of some head dims.
#pragma once

#include "fattn/verify/kernel.cuh"
#include "fattn/verify/teams.cuh"
#include "fattn/verify/transposed.cuh"

namespace pyllm::verify {

typedef void (*kernel_t)(Arguments);

template <int D_K, int D_V, int M, int N, int WARPS, int ROWS, int TEAMS, int HEADS, int TYPE_K, int TYPE_V, int BLOCKS> kernel_t kernel_for() {
    if constexpr (M % 16 != 0) {
        return attend_transposed<Transposed<D_K, D_V, M, N, WARPS, TEAMS, HEADS, TYPE_K, TYPE_V>, BLOCKS>;
    } else if constexpr (TEAMS > 0) {
        return attend_in_teams<Teams<D_K, D_V, M, N, WARPS, TEAMS, HEADS, TYPE_K, TYPE_V>, BLOCKS>;
    } else {
        return attend<Tile<D_K, D_V, M, N, WARPS, ROWS, TYPE_K, TYPE_V>, BLOCKS>;
    }
}

// nullptr for an instance of other head dims.
template <int D_K, int D_V> kernel_t kernel_of(int place) {
    int at = 0;
#define VERIFY_INSTANCE(d_k, d_v, m, n, warps, rows, teams, heads, type_k, type_v, blocks)             \
    if constexpr (d_k == D_K && d_v == D_V) {                                                          \
        if (at == place) {                                                                             \
            return kernel_for<D_K, D_V, m, n, warps, rows, teams, heads, type_k, type_v, blocks>();    \
        }                                                                                              \
    }                                                                                                  \
    ++at;
#include "fattn/verify/instances.inc"
#undef VERIFY_INSTANCE
    return nullptr;
}

#define VERIFY_HEAD(d_k, d_v) extern template kernel_t kernel_of<d_k, d_v>(int);
#include "fattn/verify/heads.inc"
#undef VERIFY_HEAD

}  // namespace pyllm::verify
