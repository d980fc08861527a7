// Uniform numbers that can be taken up again at any place: a seed and how many were drawn.
#pragma once

#include <cstdint>
#include <random>

namespace pyllm {

class random_stream {
public:
    // Upstream's generator and distribution: the same seed draws the same tokens as its servers do.
    explicit random_stream(uint32_t seed, uint64_t drawn = 0) : first(seed), engine(seed) {
        while (count < drawn) {
            next();
        }
    }

    // In [0, 1).
    double next() {
        count += 1;
        return std::uniform_real_distribution<double>(0.0, 1.0)(engine);
    }

    uint32_t seed() const { return first; }
    uint64_t drawn() const { return count; }

private:
    uint32_t     first;
    uint64_t     count = 0;
    std::mt19937 engine;
};

} // namespace pyllm
