// Drafting for all sequences of one target with one draft model: what all kinds of drafters have in common.
//
// The target's rows are stashed after its decodes and reach the draft memory only when a draft needs them (`deferred`): rejected tokens and slots
// that do not draft cost nothing, and all slots are brought up to date in one decode. Nothing here throws for what a request contains: a sequence
// whose drafting fails gets empty drafts, and why() says for what reason.
#pragma once

#include "draft/candidates.h"
#include "draft/cells.h"
#include "draft/stash.h"

#include "common.h"
#include "llama.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pyllm::draft {

// At most n_max tokens after `last`, which stands at position pos and is in no memory yet.
struct request {
    llama_seq_id seq;
    llama_token  last;
    llama_pos    pos;
    int32_t      n_max;
    float        temperature; // <= 0: the most likely tokens
    float        p_min;       // below 0: as configured
    uint64_t     seed;
    int32_t *    tokens;      // out, room for n_max
    int32_t *    q_ids;       // out, n_max x PYLLM_DRAFT_CANDIDATES, or NULL: what the tokens were drawn from
    float *      q_probs;
    int32_t      n_tokens;    // out
};

struct settings {
    llama_context * ctx_tgt = nullptr;
    llama_context * ctx_dft = nullptr;
    int32_t n_max = 3;
    int32_t n_min = 0;      // a shorter draft is dropped
    float   p_min = 0.0f;   // a draft ends before a token that is less certain
    bool    deferred = true; // false: rows are injected after each decode, and the caller cuts the draft memory itself
    bool    device_sampling = false;
    size_t  stash_bytes = 64u << 20; // over all sequences; what is over it is injected before a draft needs it
};

// Since creation, over all sequences.
struct counters {
    uint64_t n_drafts = 0;         // with at least one token
    uint64_t n_drafted = 0;
    uint64_t n_accepted = 0;
    uint64_t n_failures = 0;       // of one sequence each: it went on without a draft
    uint64_t n_decodes = 0;        // of the draft context
    uint64_t n_inject_decodes = 0; // those of them that brought rows into the draft memory
    uint64_t n_injected = 0;       // rows
};

class driver {
public:
    virtual ~driver() = default;

    virtual const char * kind() const = 0; // as states name it
    int32_t          n_max() const { return settings_.n_max; } // after the limits of block size and chained heads
    const settings & configured() const { return settings_; }
    const cells &    memory() const { return cells_; }
    const counters & stats() const { return stats_; }

    // After a successful decode of the target.
    void process(const common_batch & batch);
    void draft(std::vector<request> & requests);
    // Of the rows of the last decode the first n_rows stay; n_drafted of them were drafted here.
    void accept(llama_seq_id seq, int32_t n_rows, int32_t n_drafted);
    // Only positions [0, end) stay; with end 0 all is forgotten, failures too.
    void truncate(llama_seq_id seq, llama_pos end);
    // Of the first `end` tokens, which the draft memory keeps after truncate(seq, end), the target may keep this many: `end`, or one less where the
    // row before `end` is missing and the target has to compute it again.
    llama_pos reusable(llama_seq_id seq, llama_pos end) const;
    // The n_discard positions after n_keep are gone, those behind them have moved down.
    void shift(llama_seq_id seq, llama_pos n_keep, llama_pos n_discard);
    // `to` holds the first `end` tokens of `from` too, -1: all.
    void copy(llama_seq_id from, llama_seq_id to, llama_pos end);
    // A sequence starts to generate: one that was off may draft again.
    void begin(llama_seq_id seq);
    // Brings the draft memory of all sequences up to date.
    void flush();

    // One sequence as bytes; partial: of the draft memory only what cannot be cut back. Without `deferred` only the rows: the caller saves the memory.
    size_t      state_size(llama_seq_id seq, bool partial);
    std::string get_state(llama_seq_id seq, bool partial, uint8_t * data, size_t size);
    // Returns why the bytes are refused, "" if they are not; the sequence is empty then.
    std::string set_state(llama_seq_id seq, bool partial, const uint8_t * data, size_t size);

    // The next n decodes of the draft context fail: for tests.
    void fail_next(int32_t n) { n_failing_ = n; }

    // Whether the sequence drafts no more, until it starts to generate anew.
    bool off(llama_seq_id seq) const { return sequences_[(size_t) seq].off; }
    // Reason of the sequence's last failure, "" if there was none since it was empty.
    const std::string & why(llama_seq_id seq) const { return sequences_[(size_t) seq].why; }

protected:
    struct sequence {
        stash              rows;
        std::vector<float> carry;         // hidden row of the target at carry_pos; the token after it is paired with it
        llama_pos          carry_pos = -1; // -1: none
        llama_pos          last_begin = 0; // position of the first row of the last decode
        int32_t            n_plain = 0;    // steps of one row since the last draft
        int32_t            n_failures = 0; // in a row
        bool               off = false;
        std::string        why;
    };
    // consecutive rows of one sequence in a batch of the target
    struct run {
        llama_seq_id seq;
        int32_t      first;
        int32_t      n;
    };
    // rows of one stash: first, first + 1, …
    struct part {
        llama_seq_id seq;
        size_t       first;
        size_t       n;
    };

    // stash_width: floats per row; pairs: a row is that of the token before
    driver(const settings & config, const cells & memory, size_t stash_width, bool pairs);

    virtual bool takes(const common_batch & batch) const = 0;
    // Where the target's rows of a batch lie, before stash_rows() of its runs. To ask waits for the device: once for each batch, not for each row.
    virtual void find_rows() {}
    // Appends the rows of a run, without its first `skip`. False: the target has no such rows.
    virtual bool stash_rows(const common_batch & batch, const run & rows, int32_t skip, const float * before) = 0;
    // One decode (of each head) that brings waiting rows into the draft memory. False: it failed.
    virtual bool inject(const std::vector<part> & parts) = 0;
    // Most rows of one inject.
    virtual int32_t inject_limit() const = 0;
    // Drafts for all of them, the waiting rows first. False: a decode failed, and nothing that was drafted counts.
    virtual bool draft_group(const std::vector<request *> & group) = 0;

    sequence & at(llama_seq_id seq) { return sequences_[(size_t) seq]; }
    const sequence & at(llama_seq_id seq) const { return sequences_[(size_t) seq]; }
    // Decodes; without free cells older ones are dropped until there are.
    bool decode(common_batch & batch);
    void flush(const std::vector<llama_seq_id> & seqs);
    // The target's hidden row at a position, NULL where it is not known.
    const float * row_at(const sequence & s, llama_pos pos) const;
    // Drafts one more token from an output of the last decode. False: the draft ends here.
    bool take(request & r, int32_t index);
    bool take(request & r, const candidates & found, float certainty, int32_t & chosen);
    void turn_off(llama_seq_id seq, const std::string & why);

    settings    settings_;
    cells       cells_;
    counters    stats_;
    int32_t     n_vocab_; // tokens that both models know
    std::string error_;   // of the last decode

private:
    llama_pos known_end(llama_seq_id seq) const;
    bool saves_memory(bool partial) const;
    bool stash_run(const common_batch & batch, const run & rows);
    void rest(llama_seq_id seq);
    bool ready(request & r);
    void attempt(const std::vector<request *> & group);
    void inject_or_fail(const std::vector<part> & parts);
    void forget(llama_seq_id seq);
    void fail(llama_seq_id seq, const std::string & why);

    std::vector<sequence> sequences_;
    std::vector<float>    before_;
    bool                  pairs_;
    int32_t               n_failing_ = 0;
};

// Throws std::runtime_error where the models or sizes do not allow it.
std::unique_ptr<driver> make_driver(common_speculative_type type, const settings & config);

} // namespace pyllm::draft
