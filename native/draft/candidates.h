// What a drafter proposes for one position: its most likely tokens, one of which is drafted.
#pragma once

#include "pyllm.h"

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

namespace pyllm::draft {

// At most PYLLM_DRAFT_CANDIDATES tokens, the most likely first.
struct candidates {
    int32_t n = 0;
    int32_t ids[PYLLM_DRAFT_CANDIDATES];
    float   logits[PYLLM_DRAFT_CANDIDATES];

    void add(int32_t id, float logit);
};

// The best tokens below n_vocab of the output at a batch index: those that a sampler on the device found, else of the whole row.
// Returns what is wrong with them; "" if they are numbers and at least one token is allowed.
std::string read_candidates(llama_context * ctx, int32_t index, int32_t n_vocab, candidates & found);

// Share of the best token in the softmax of all candidates.
float confidence(const candidates & from);

// Index of the drafted candidate. temperature <= 0: the best. Else drawn from the softmax of logits / temperature by a number that depends on seed
// and pos alone. q_ids and q_probs, where not NULL, get the distribution it was drawn from: PYLLM_DRAFT_CANDIDATES entries, unused ones -1 and 0.
int32_t choose(const candidates & from, float temperature, uint64_t seed, llama_pos pos, int32_t * q_ids, float * q_probs);

// A sampler per sequence that finds the candidates on the device, where its backend can; sequences without one are read from their logits.
class device_samplers {
public:
    device_samplers(llama_context * ctx, int32_t n_seq, bool wanted);
    ~device_samplers();
    device_samplers(const device_samplers &)             = delete;
    device_samplers & operator=(const device_samplers &) = delete;

private:
    llama_context * ctx_;
    std::vector<llama_sampler *> chains_; // NULL: none for this sequence
};

} // namespace pyllm::draft
