#include "draft/micro_batches.h"

#include <algorithm>
#include <numeric>

namespace pyllm::draft {

void micro_batches(const int32_t * seqs, const int32_t * rows, int32_t n, Cut cut, std::vector<int32_t> & out) {
    out.clear();
    if (cut == Cut::rows) {
        out.push_back(std::accumulate(rows, rows + n, 0));
        return;
    }
    std::vector<int32_t> left(rows, rows + n), taken;
    while (true) {
        taken.clear();
        for (int32_t i = 0; i < n; ++i) {
            if (left[(size_t) i] > 0 && (taken.empty() || cut == Cut::equal || seqs[i] == seqs[taken.back()] + 1)) {
                taken.push_back(i);
            }
        }
        if (taken.empty()) {
            return;
        }
        int32_t shortest = left[(size_t) taken.front()];
        for (const int32_t i : taken) {
            shortest = std::min(shortest, left[(size_t) i]);
        }
        for (const int32_t i : taken) {
            left[(size_t) i] -= shortest;
        }
        out.push_back(shortest * (int32_t) taken.size());
    }
}

} // namespace pyllm::draft
