// How a decode of several sequences is cut into micro-batches: each costs a pass over the model's weights.
#pragma once

#include <cstdint>
#include <vector>

namespace pyllm::draft {

enum class Cut : int32_t {
    rows       = 0, // one micro-batch, whatever each sequence has: a unified cache of attention
    equal      = 1, // as many rows of each sequence: recurrent state
    neighbours = 2, // the same, and of sequences that follow each other: caches of their own
};

// Rows of the micro-batches of a decode with rows[i] > 0 rows of sequence seqs[i], in ascending order.
void micro_batches(const int32_t * seqs, const int32_t * rows, int32_t n, Cut cut, std::vector<int32_t> & out);

} // namespace pyllm::draft
