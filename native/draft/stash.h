// Rows of one sequence that its target has computed, on their way into a draft memory.
#pragma once

#include "llama.h"

#include <cstddef>
#include <vector>

namespace pyllm::draft {

// Tokens with their positions, increasing, and `width` floats each. The first n_injected() rows are in the draft memory already; they stay until
// the next rows come, because a cut may need the floats of one of them.
class stash {
public:
    explicit stash(size_t width = 0) : width_(width) {}

    size_t      size() const { return ids_.size(); }
    size_t      width() const { return width_; }
    size_t      n_injected() const { return n_injected_; }
    size_t      n_waiting() const { return ids_.size() - n_injected_; }
    size_t      waiting_bytes() const { return n_waiting() * (width_ * sizeof(float) + sizeof(llama_token) + sizeof(llama_pos)); }
    llama_pos   end() const { return pos_.empty() ? 0 : pos_.back() + 1; }
    llama_token id(size_t i) const { return ids_[i]; }
    llama_pos   pos(size_t i) const { return pos_[i]; }
    const float * row(size_t i) const { return rows_.data() + i * width_; }

    // floats of the row at a position, NULL if it is not here
    const float * find(llama_pos pos) const;

    // row NULL: zeros
    void append(llama_token id, llama_pos pos, const float * row);
    // the same, of parts of equal width
    void append(llama_token id, llama_pos pos, const std::vector<const float *> & parts);
    void injected(size_t n) { n_injected_ += n; }
    // drops the rows at positions >= end
    void truncate(llama_pos end);
    void drop_injected() { drop_first(n_injected_); }
    // drops the first n rows; of those that wait too
    void drop_first(size_t n);
    void clear();

private:
    size_t width_;
    size_t n_injected_ = 0;
    std::vector<llama_token> ids_;
    std::vector<llama_pos>   pos_;
    std::vector<float>       rows_;
};

} // namespace pyllm::draft
