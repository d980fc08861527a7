// The graphs that a context has built last, one for each shape of a small batch.
//
// A backend that captures a graph knows it by its first node. Where shapes take turns (a draft, its verification, steps of slots that come and go) and
// share one arena, each change looks like the old graph with other nodes: it is launched node by node, and captured anew. With an arena of its own
// each shape keeps its capture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyllm {

template <typename Pointer> class graph_shapes {
public:
    // n_tokens 0: no device captures graphs, and one arena with and one without outputs is enough. The pointer is empty at first; where all places
    // are taken, the shape that was not asked for longest loses its own.
    Pointer & of(bool outputs, uint32_t n_tokens, uint32_t n_seqs) {
        const bool   small = n_tokens <= MAX_TOKENS;
        const shape  wanted{ outputs, small ? n_tokens : 0, small ? n_seqs : 0, ++clock_ };
        size_t       place = 0;
        for (size_t i = 0; i < shapes_.size(); ++i) {
            if (shapes_[i].same(wanted)) {
                shapes_[i].used = clock_;
                return pointers_[i];
            }
            place = shapes_[i].used < shapes_[place].used ? i : place;
        }
        if (shapes_.size() < MAX_SHAPES) {
            place = shapes_.size();
            shapes_.push_back(wanted);
            pointers_.emplace_back();
        }
        shapes_[place] = wanted;
        return pointers_[place];
    }

    auto begin() { return pointers_.begin(); }
    auto end() { return pointers_.end(); }

private:
    static constexpr size_t   MAX_SHAPES = 24;
    static constexpr uint32_t MAX_TOKENS = 128; // longer ones are parts of prompts, rarely of the same length twice

    struct shape {
        bool     outputs;
        uint32_t n_tokens, n_seqs;
        uint64_t used;

        bool same(const shape & other) const { return outputs == other.outputs && n_tokens == other.n_tokens && n_seqs == other.n_seqs; }
    };

    std::vector<shape>   shapes_;
    std::vector<Pointer> pointers_;
    uint64_t             clock_ = 0;
};

} // namespace pyllm
