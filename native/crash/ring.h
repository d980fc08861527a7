// The last N values of a kind, written by any thread without a lock and read by one that is about to die.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pyllm::crash {

// T is plain data. Each slot has a turn: 2n + 1 while the n-th value is being written into it, 2n + 2 once it is whole. A writer that is
// overtaken by N others spoils the value of one of them; the reader then finds another turn than it expects and leaves the slot out.
template <typename T, size_t N> class Ring {
public:
    // fill(value) writes the next value; the return is the value's number.
    template <typename F> uint64_t write(F && fill) {
        const uint64_t n = next_.fetch_add(1, std::memory_order_relaxed);
        rewrite(n, [&](T & value) {
            value = T();
            fill(value);
        });
        return n;
    }

    // Changes the n-th value, if it is still there.
    template <typename F> void amend(uint64_t n, F && change) {
        if (slots_[n % N].turn.load(std::memory_order_acquire) == 2 * n + 2) {
            rewrite(n, change);
        }
    }

    uint64_t count() const { return next_.load(std::memory_order_relaxed); }

    // visit(value) for the values that are whole, the oldest first. One reader only.
    template <typename F> void read(F && visit) {
        const uint64_t end = count();
        for (uint64_t n = end < N ? 0 : end - N; n < end; ++n) {
            const Slot & slot = slots_[n % N];
            if (slot.turn.load(std::memory_order_acquire) != 2 * n + 2) {
                continue;
            }
            copy_ = slot.value;
            std::atomic_thread_fence(std::memory_order_acquire);
            if (slot.turn.load(std::memory_order_relaxed) == 2 * n + 2) {
                visit(const_cast<const T &>(copy_));
            }
        }
    }

private:
    struct Slot {
        std::atomic<uint64_t> turn{ 0 };
        T                     value{};
    };

    template <typename F> void rewrite(uint64_t n, F && change) {
        Slot & slot = slots_[n % N];
        slot.turn.store(2 * n + 1, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
        change(slot.value);
        slot.turn.store(2 * n + 2, std::memory_order_release);
    }

    std::atomic<uint64_t> next_{ 0 };
    Slot                  slots_[N];
    T                     copy_{}; // of the slot being visited: other threads go on writing
};

} // namespace pyllm::crash
