// One row of an attention mask over cells that hold one sequence alone.
#pragma once

#include <cstdint>
#include <vector>

namespace pyllm {

// row[j]: `keep` where the cell's position is in [0, last], else `drop`; positions of empty cells are negative. `near` gets the cells, in their order, whose
// positions are `from` or later: only those may differ in the other rows of a batch whose first position is no earlier than `from`.
template <typename T>
void mask_row(const int32_t * positions, int64_t n, int32_t last, int32_t from, T keep, T drop, T * row, std::vector<uint32_t> & near) {
    constexpr int64_t block = 256; // short enough that a block with a near cell, of which there are few, costs little
    from = from > 0 ? from : 0;
    for (int64_t begin = 0; begin < n; begin += block) {
        const int64_t end = begin + block < n ? begin + block : n;
        int32_t latest = -1;
        for (int64_t j = begin; j < end; ++j) {
            row[j]  = (uint32_t) positions[j] <= (uint32_t) last ? keep : drop;
            latest = positions[j] > latest ? positions[j] : latest;
        }
        for (int64_t j = latest >= from ? begin : end; j < end; ++j) {
            if (positions[j] >= from) {
                near.push_back((uint32_t) j);
            }
        }
    }
}

} // namespace pyllm
