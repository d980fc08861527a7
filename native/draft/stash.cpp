#include "draft/stash.h"

#include <algorithm>

namespace pyllm::draft {

const float * stash::find(llama_pos pos) const {
    const auto found = std::lower_bound(pos_.begin(), pos_.end(), pos);
    return found != pos_.end() && *found == pos ? row((size_t) (found - pos_.begin())) : nullptr;
}

void stash::append(llama_token id, llama_pos pos, const float * row) {
    ids_.push_back(id);
    pos_.push_back(pos);
    if (row != nullptr) {
        rows_.insert(rows_.end(), row, row + width_);
    } else {
        rows_.resize(rows_.size() + width_, 0.0f);
    }
}

void stash::append(llama_token id, llama_pos pos, const std::vector<const float *> & parts) {
    ids_.push_back(id);
    pos_.push_back(pos);
    for (const float * part : parts) {
        rows_.insert(rows_.end(), part, part + width_ / parts.size());
    }
}

void stash::truncate(llama_pos end) {
    const size_t n = (size_t) (std::lower_bound(pos_.begin(), pos_.end(), end) - pos_.begin());
    ids_.resize(n);
    pos_.resize(n);
    rows_.resize(n * width_);
    n_injected_ = std::min(n_injected_, n);
}

void stash::drop_first(size_t n) {
    ids_.erase(ids_.begin(), ids_.begin() + (ptrdiff_t) n);
    pos_.erase(pos_.begin(), pos_.begin() + (ptrdiff_t) n);
    rows_.erase(rows_.begin(), rows_.begin() + (ptrdiff_t) (n * width_));
    n_injected_ -= std::min(n_injected_, n);
}

void stash::clear() {
    ids_.clear();
    pos_.clear();
    rows_.clear();
    n_injected_ = 0;
}

} // namespace pyllm::draft
