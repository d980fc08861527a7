// What a crash report tells about the time before: attention nodes, batches, log lines. Recorded only while reports are on.
#pragma once

#include "crash/stack.h"
#include "route/route.h"

#include "ggml.h"

#include <atomic>
#include <cstdint>

namespace pyllm::crash {

class Page;

extern std::atomic<bool> recording_on;

inline bool recording() {
    return recording_on.load(std::memory_order_relaxed);
}

// Where attention nodes are counted, before they run. route -1: the CPU's own kernel, which no route of ours decides.
void record_attention(const char * device, int32_t phase, const route::Decision & decision, const ggml_tensor * node);

// A line, or a piece of one: what does not end a line is continued by the next text of level CONT.
void record_log(ggml_log_level level, const char * text);

// A thread that may run deep before anything is recorded: one that parses what a request sends.
inline void guard_thread() {
    if (recording()) {
        guard_stack();
    }
}

// One decode or encode of a context, running until the end of the scope. B is upstream's llama_batch_ext; `architecture` lives for ever.
class Batch {
public:
    template <typename B> Batch(const B & batch, const char * architecture, bool encode) {
        if (!recording()) {
            return;
        }
        open(architecture, encode);
        for (const auto & token : batch.tokens) {
            for (const auto seq : token.seq_ids) {
                add(seq, token.pos[0], token.output);
            }
        }
        close((int32_t) batch.tokens.size());
    }
    ~Batch();
    Batch(const Batch &)             = delete;
    Batch & operator=(const Batch &) = delete;

private:
    void open(const char * architecture, bool encode);
    void add(int32_t seq, int32_t pos, bool output);
    void close(int32_t n_tokens);

    static constexpr uint64_t none = UINT64_MAX;
    uint64_t                  number_ = none;
};

// llama_print_system_info where that may not be called yet: it is, when the first batch is recorded.
void        describe_later(const char * (*describe)());
const char * description();

// Sections of the report. Only from the thread that writes it.
void write_batches(Page & page, int64_t now);
void write_attention(Page & page, int64_t now);
void write_log(Page & page, int64_t now);

// Nanoseconds of a clock that does not jump.
int64_t clock_ns();

} // namespace pyllm::crash
