// Rows of a batch that lie behind each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyllm {

// Whether rows[i] is rows[0] + i: what is stored by row can then be read where it is.
inline bool consecutive(const std::vector<int32_t> & rows) {
    for (size_t i = 1; i < rows.size(); ++i) {
        if (rows[i] != rows[0] + (int32_t) i) {
            return false;
        }
    }
    return !rows.empty();
}

} // namespace pyllm
