#include "draft/acceptance.h"

#include <algorithm>
#include <cmath>

namespace pyllm::draft {

namespace {

constexpr float    kWindow       = 64.0f; // trials of a slot
constexpr float    kEngineWindow = 128.0f; // trials of all slots
constexpr float    kPrior        = 4.0f;  // trials that the engine's share counts for in a slot
constexpr float    kBorrowed     = 16.0f; // trials of all slots that make a slot's own less needed
constexpr float    kUnknown      = 0.6f;  // of a first position before anything was drafted
constexpr float    kHalfLife     = 128.0f;// steps without a trial after which the old ones count half
constexpr uint64_t kStale        = 64;    // steps

} // namespace

void Share::add(bool success, float window, uint64_t step, bool watch) {
    const float x = success ? 1.0f : 0.0f;
    if (watch && weight > 0.0f && step > last + 8) {
        weight *= std::exp2(-(float) (step - last) / kHalfLife);
    }
    recent = weight > 0.0f ? recent + (x - recent) * 0.25f : x;
    last   = step;
    weight = std::min(weight + 1.0f, window);
    mean += (x - mean) / weight;
    // recent has a standard deviation of sqrt(mean (1 - mean) / 7); beyond three of them the text has changed.
    const float m = std::clamp(mean, 0.05f, 0.95f);
    if (watch && weight >= 8.0f && std::fabs(recent - mean) > 0.15f + 3.0f * std::sqrt(m * (1.0f - m) / 7.0f)) {
        mean   = recent;
        weight = 4.0f;
    }
}

Acceptance::Acceptance(int32_t n_seq, int32_t n_max)
    : n_max_((size_t) n_max), slot_((size_t) n_seq * n_max_), drafted_((size_t) n_seq * n_max_), engine_(n_max_) {}

void Acceptance::begin(int32_t seq) {
    // How often positions are left empty belongs to the drafter, not to the text: it stays.
    std::fill_n(slot_.begin() + (ptrdiff_t) ((size_t) seq * n_max_), n_max_, Share{});
}

bool Acceptance::add(int32_t seq, int32_t asked, int32_t drafted, int32_t accepted, uint64_t step) {
    Share * const slot = slot_.data() + (size_t) seq * n_max_;
    Share * const rows = drafted_.data() + (size_t) seq * n_max_;
    bool changed = false;
    for (int32_t j = 0; j < asked && j <= accepted; ++j) {
        const float before = slot[j].weight;
        slot[j].add(j < accepted, kWindow, step, true);
        if (slot[j].weight < std::min(before, 5.0f)) { // it has forgotten what it knew
            changed = true;
            engine_[(size_t) j].weight = std::min(engine_[(size_t) j].weight, kPrior);
        }
        engine_[(size_t) j].add(j < accepted, kEngineWindow, step, false);
    }
    for (int32_t j = 0; j < asked && j <= drafted; ++j) {
        rows[j].add(j < drafted, kWindow, step, false);
    }
    return changed;
}

void Acceptance::chances(int32_t seq, int32_t depth, uint64_t step, Outlook outlook, float * tokens, float * rows) const {
    const Share * const slot    = slot_.data() + (size_t) seq * n_max_;
    const Share * const drafted = drafted_.data() + (size_t) seq * n_max_;
    float before = kUnknown, reached = 1.0f, filled = 1.0f;
    for (int32_t j = 0; j < depth; ++j) {
        const Share & engine = engine_[(size_t) j];
        float prior = (engine.weight * engine.mean + kPrior * before) / (engine.weight + kPrior);
        float share = (slot[j].weight * slot[j].mean + kPrior * prior) / (slot[j].weight + kPrior);
        const float trials = std::max(slot[j].weight, std::min(engine.weight, kBorrowed));
        const float doubt  = 0.5f * std::sqrt(share * (1.0f - share)) / (1.0f + trials / 3.0f);
        const float even   = share;
        if (outlook == Outlook::careful) {
            share = std::max(0.0f, share - doubt);
        } else if (outlook == Outlook::hopeful) {
            share = std::max(std::min(1.0f, share + doubt), j > 0 && step > slot[j].last + kStale ? before : 0.0f);
        }
        // The next position is expected to be as good as this one is where it is drafted: a drafter that found two tokens has a third.
        const float filling = drafted[j].weight > 0.0f ? (drafted[j].weight * drafted[j].mean + 1.0f) / (drafted[j].weight + 1.0f) : 1.0f;
        before = std::min(1.0f, (outlook == Outlook::hopeful ? share : even) / std::max(filling, 1e-3f));
        reached *= share;
        filled *= filling;
        tokens[j] = reached;
        rows[j]   = filled;
    }
}

} // namespace pyllm::draft
