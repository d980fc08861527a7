#include "draft/depth.h"

#include "core/error.h"

#include <algorithm>
#include <cmath>

struct pyllm_depth {
    pyllm::draft::DepthControl control;
    std::vector<uint8_t>       seen; // by sequence, of the call that is being checked
};

using namespace pyllm;

namespace {

// A message is made only when it is needed: these checks run several times per step.
void check_seq(const pyllm_depth & depth, int32_t seq) {
    if (seq < 0 || seq >= depth.control.n_seq()) {
        throw failure(PYLLM_INVALID_ARGUMENT, format("sequence %d is not in [0, %d)", seq, depth.control.n_seq()));
    }
}

// Sequences of one call: known, generating, none twice.
void check_seqs(pyllm_depth & depth, const int32_t * seqs, int32_t n) {
    if (n < 0 || n > depth.control.n_seq()) {
        throw failure(PYLLM_INVALID_ARGUMENT, format("%d slots in one step: not in [0, %d]", n, depth.control.n_seq()));
    }
    if (n > 0) {
        not_null(seqs, "seqs");
    }
    std::fill(depth.seen.begin(), depth.seen.end(), (uint8_t) 0);
    for (int32_t i = 0; i < n; ++i) {
        check_seq(depth, seqs[i]);
        if (!depth.control.generating(seqs[i])) {
            throw failure(PYLLM_INVALID_ARGUMENT, format("sequence %d is not generating", seqs[i]), "call begin first");
        }
        if (depth.seen[(size_t) seqs[i]] != 0) {
            throw failure(PYLLM_INVALID_ARGUMENT, format("sequence %d is given twice", seqs[i]));
        }
        depth.seen[(size_t) seqs[i]] = 1;
    }
}

void check_seconds(double seconds, const char * name) {
    if (!(seconds >= 0.0 && seconds <= 1e6)) { // NaN too
        throw failure(PYLLM_INVALID_ARGUMENT, format("%s %g is not in [0, 1e6]", name, seconds));
    }
}

void check_rows(int32_t rows, int32_t least, const char * name) {
    constexpr int32_t most = 1 << 30;
    if (rows < least || rows > most) {
        throw failure(PYLLM_INVALID_ARGUMENT, format("%s %d is not in [%d, %d]", name, rows, least, most));
    }
}

} // namespace

static_assert((int32_t) draft::Cut::neighbours + 1 == PYLLM_CUT_COUNT, "cuts of the header and of micro_batches.h differ");
static_assert((int32_t) draft::DepthReason::baseline + 1 == PYLLM_DEPTH_REASON_COUNT, "reasons of the header and of depth.h differ");

extern "C" {

pyllm_status pyllm_depth_create(int32_t n_seq, int32_t n_max, int32_t cut, int32_t n_listen, pyllm_depth ** out) {
    return guard([&] {
        *not_null(out, "out") = nullptr;
        require(n_seq >= 1 && n_seq <= 4096, PYLLM_INVALID_ARGUMENT, format("n_seq %d is not in [1, 4096]", n_seq));
        require(n_max >= 1 && n_max <= PYLLM_DEPTH_MAX, PYLLM_LIMIT, format("depth %d is not in [1, %d]", n_max, PYLLM_DEPTH_MAX), "draft fewer tokens at a time");
        require(cut >= 0 && cut < PYLLM_CUT_COUNT, PYLLM_INVALID_ARGUMENT, format("cut %d is not known", cut));
        check_rows(n_listen, 0, "n_listen");
        *out = new pyllm_depth{ draft::DepthControl(n_seq, n_max, (draft::Cut) cut, n_listen), std::vector<uint8_t>((size_t) n_seq, 0) };
    });
}

void pyllm_depth_free(pyllm_depth * depth) { delete depth; }

pyllm_status pyllm_depth_measure(pyllm_depth * depth, int32_t draft_depth, int32_t n_slots, int32_t n_rows, double seconds_draft, double seconds_decode) {
    return guard([&] {
        draft::DepthControl & control = not_null(depth, "depth")->control;
        require(draft_depth >= 0 && draft_depth <= control.n_max(), PYLLM_INVALID_ARGUMENT, format("depth %d is not in [0, %d]", draft_depth, control.n_max()));
        require(n_slots >= 1 && n_slots <= control.n_seq(), PYLLM_INVALID_ARGUMENT, format("%d slots: not in [1, %d]", n_slots, control.n_seq()));
        check_rows(n_rows, n_slots, "n_rows");
        check_seconds(seconds_draft, "seconds_draft");
        check_seconds(seconds_decode, "seconds_decode");
        control.measure(draft_depth, n_slots, n_rows, seconds_draft, seconds_decode);
    });
}

pyllm_status pyllm_depth_begin(pyllm_depth * depth, int32_t seq, int32_t n_catchup) {
    return guard([&] {
        check_seq(*not_null(depth, "depth"), seq);
        check_rows(n_catchup, 0, "n_catchup");
        depth->control.begin(seq, n_catchup);
    });
}

pyllm_status pyllm_depth_end(pyllm_depth * depth, int32_t seq) {
    return guard([&] {
        check_seq(*not_null(depth, "depth"), seq);
        if (depth->control.generating(seq)) {
            depth->control.end(seq);
        }
    });
}

pyllm_status pyllm_depth_choose(pyllm_depth * depth, const int32_t * seqs, const int32_t * limits, int32_t n, int32_t * depths) {
    return guard([&] {
        check_seqs(*not_null(depth, "depth"), seqs, n);
        if (n > 0) {
            not_null(limits, "limits");
            not_null(depths, "depths");
        }
        for (int32_t i = 0; i < n; ++i) {
            if (limits[i] < 0) {
                throw failure(PYLLM_INVALID_ARGUMENT, format("limit %d of sequence %d is negative", limits[i], seqs[i]), "0 forbids a draft");
            }
        }
        depth->control.choose(seqs, limits, n, depths);
    });
}

pyllm_status pyllm_depth_rests(const pyllm_depth * depth, bool * rests, bool * skips_prompts) {
    return guard([&] {
        *not_null(rests, "rests") = not_null(depth, "depth")->control.rests();
        *not_null(skips_prompts, "skips_prompts") = depth->control.skips_prompts();
    });
}

pyllm_status pyllm_depth_rested(pyllm_depth * depth, double seconds, bool * rests) {
    return guard([&] {
        draft::DepthControl & control = not_null(depth, "depth")->control;
        not_null(rests, "rests");
        check_seconds(seconds, "seconds");
        if (!control.chose_rest()) {
            throw failure(PYLLM_INVALID_ARGUMENT, "no choice of these slots rests", "choose for the slots that generate, and record what came of it");
        }
        *rests = control.rested(seconds);
    });
}

pyllm_status pyllm_depth_record(pyllm_depth * depth, const pyllm_depth_step * step) {
    return guard([&] {
        not_null(depth, "depth");
        const pyllm_depth_step & s = *not_null(step, "step");
        check_seqs(*depth, s.seqs, s.n);
        check_rows(s.n, 1, "n");
        not_null(s.drafted, "drafted");
        not_null(s.accepted, "accepted");
        for (int32_t i = 0; i < s.n; ++i) {
            if (s.drafted[i] < 0 || s.drafted[i] > depth->control.n_max()) {
                throw failure(PYLLM_INVALID_ARGUMENT,
                              format("%d tokens drafted for sequence %d: not in [0, %d]", s.drafted[i], s.seqs[i], depth->control.n_max()));
            }
            if (s.accepted[i] < 0 || s.accepted[i] > s.drafted[i]) {
                throw failure(PYLLM_INVALID_ARGUMENT, format("%d tokens accepted of %d drafted for sequence %d", s.accepted[i], s.drafted[i], s.seqs[i]));
            }
        }
        check_seconds(s.seconds_draft, "seconds_draft");
        check_seconds(s.seconds_decode, "seconds_decode");
        check_rows(s.n_rows, s.n, "n_rows");
        check_rows(s.n_catchup, 0, "n_catchup");
        check_rows(s.n_prompt_rows, 0, "n_prompt_rows");
        draft::DepthStep taken;
        taken.n              = s.n;
        taken.seqs           = s.seqs;
        taken.drafted        = s.drafted;
        taken.accepted       = s.accepted;
        taken.seconds_draft  = s.seconds_draft;
        taken.seconds_decode = s.seconds_decode;
        taken.n_rows         = s.n_rows;
        taken.n_catchup      = s.n_catchup;
        taken.n_prompt_rows  = s.n_prompt_rows;
        depth->control.record(taken);
    });
}

pyllm_status pyllm_depth_get_slot(const pyllm_depth * depth, int32_t seq, pyllm_depth_slot * out) {
    return guard([&] {
        check_seq(*not_null(depth, "depth"), seq);
        *not_null(out, "out") = pyllm_depth_slot{};
        const draft::DepthSlot slot = depth->control.slot(seq);
        out->depth       = slot.depth;
        out->reason      = (int32_t) slot.reason;
        out->n_positions = depth->control.n_max();
        out->rate        = slot.rate;
        out->rate_off    = slot.rate_off;
        depth->control.acceptance(seq, out->acceptance);
        copy_text(slot.text, out->text, sizeof(out->text), nullptr);
    });
}

pyllm_status pyllm_depth_get_costs(const pyllm_depth * depth, pyllm_depth_cost * costs, size_t capacity, size_t * count) {
    return guard([&] {
        not_null(depth, "depth");
        require(capacity == 0 || costs != nullptr, PYLLM_INVALID_ARGUMENT, "costs is NULL");
        size_t n = 0;
        const auto put = [&](int32_t rows, int32_t deep, int32_t slots, const draft::Cost & cost) {
            if (n < capacity) {
                costs[n] = { rows, deep, slots, cost.count, cost.seconds };
            }
            ++n;
        };
        for (const draft::Cost & cost : depth->control.decode_cost().cells()) {
            if (cost.count > 0) {
                put((int32_t) std::lround(cost.place), 0, 0, cost);
            }
        }
        depth->control.draft_cost().each([&](int32_t deep, int32_t slots, const draft::Cost & cost) { put(0, deep, slots, cost); });
        *not_null(count, "count") = n;
    });
}

pyllm_status pyllm_depth_get_totals(const pyllm_depth * depth, pyllm_depth_totals * out) {
    return guard([&] {
        const draft::DepthTotals totals = not_null(depth, "depth")->control.totals();
        *not_null(out, "out") = { totals.n_steps, totals.n_probes, totals.seconds, totals.seconds_probing, totals.seconds_catchup };
    });
}

} // extern "C"
