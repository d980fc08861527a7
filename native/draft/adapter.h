// Our drivers behind upstream's interface, for its server. Included by the patched common/speculative.cpp after common_speculative_impl is defined.
#pragma once

#include "draft/boundary.h"
#include "draft/driver.h"
#include "draft/metrics.h"
#include "draft/resting.h"

#include "log.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace pyllm::draft {

// The states of all drafters of a sequence in one piece, each behind its type and length. False: none has anything to say.
template <class Impls>
bool save_all(const Impls & impls, llama_seq_id seq, std::vector<uint8_t> & data) {
    const auto put = [&](uint64_t value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        data.insert(data.end(), bytes, bytes + sizeof(value));
    };
    bool any = false;
    data.clear();
    for (const auto & impl : impls) {
        std::vector<uint8_t> part;
        if (!impl->get_state(seq, part)) {
            part.clear();
        }
        any = any || !part.empty();
        put((uint64_t) impl->type);
        put(part.size());
        data.insert(data.end(), part.begin(), part.end());
    }
    if (!any) {
        data.clear();
    }
    return any;
}

// What is not understood is forgotten: a drafter without its rows drafts less well, one with another's rows does too, and nobody knows why.
template <class Impls>
void load_all(const Impls & impls, llama_seq_id seq, const std::vector<uint8_t> & data) {
    size_t at = 0;
    const auto take = [&](uint64_t & value) {
        if (data.size() - at < sizeof(value)) {
            return false;
        }
        std::memcpy(&value, data.data() + at, sizeof(value));
        at += sizeof(value);
        return true;
    };
    bool ok = true;
    for (const auto & impl : impls) {
        uint64_t type = 0;
        uint64_t size = 0;
        ok = ok && take(type) && take(size) && type == (uint64_t) impl->type && size <= data.size() - at;
        if (ok && size > 0) {
            impl->set_state(seq, std::vector<uint8_t>(data.begin() + (ptrdiff_t) at, data.begin() + (ptrdiff_t) (at + size)));
            at += size;
        } else {
            impl->forget(seq);
        }
    }
}

} // namespace pyllm::draft

// The server cuts, copies, shifts and saves the draft memory itself, so rows are injected right after each decode and states hold rows alone.
struct common_speculative_impl_driven : public common_speculative_impl {
    std::unique_ptr<pyllm::draft::driver> driver;
    std::vector<pyllm::draft::request>    requests;
    uint64_t                              n_reported = 0; // failures that the log knows
    int64_t                               t_rows_us  = 0; // taking over rows of the target

    common_speculative_impl_driven(common_speculative_type type, const common_params_speculative & params, uint32_t n_seq) : common_speculative_impl(type, n_seq, params.draft.n_max) {
        pyllm::draft::settings config;
        config.ctx_tgt         = params.draft.ctx_tgt;
        config.ctx_dft         = params.draft.ctx_dft;
        config.n_max           = params.draft.n_max;
        config.n_min           = params.draft.n_min;
        config.p_min           = params.draft.p_min;
        config.deferred        = false;
        config.device_sampling = params.draft.backend_sampling && config.ctx_dft != nullptr && llama_model_n_devices(llama_get_model(config.ctx_dft)) > 0;
        driver = pyllm::draft::make_driver(type, config);
        n_max  = driver->n_max();
        LOG_INF("drafter %s (%s): n_max %d, n_min %d, p_min %.2f\n", common_speculative_type_to_str(type).c_str(), driver->kind(), n_max, config.n_min, (double) config.p_min);
        if (n_max < config.n_max) {
            LOG_WRN("drafter %s: drafts of %d tokens were asked for, %d is what its block or heads allow\n", common_speculative_type_to_str(type).c_str(), config.n_max, n_max);
        }
    }

    bool known(llama_seq_id seq) const { return seq >= 0 && seq < (llama_seq_id) n_seq; }

    void report() {
        if (driver->stats().n_failures == n_reported) {
            return;
        }
        n_reported = driver->stats().n_failures;
        for (llama_seq_id seq = 0; seq < (llama_seq_id) n_seq; ++seq) {
            if (!driver->why(seq).empty()) {
                LOG_WRN("drafter %s, slot %d: %s; it goes on without a draft\n", common_speculative_type_to_str(type).c_str(), seq, driver->why(seq).c_str());
            }
        }
    }

    void begin(llama_seq_id seq, const llama_tokens &) override {
        if (known(seq)) {
            driver->begin(seq);
        }
    }

    // A sequence that cannot follow drafts no more; requests go on.
    bool process(const common_batch & batch) override {
        const int64_t begin = ggml_time_us();
        driver->process(batch);
        t_rows_us += ggml_time_us() - begin;
        report();
        return true;
    }

    void draft(common_speculative_draft_params_vec & dparams) override {
        requests.clear();
        for (llama_seq_id seq = 0; seq < (llama_seq_id) std::min(dparams.size(), (size_t) n_seq); ++seq) {
            auto & dp = dparams[(size_t) seq];
            if (dp.drafting) {
                const int32_t n = dp.n_max > 0 ? std::min(dp.n_max, n_max) : n_max;
                dp.result->resize((size_t) n);
                requests.push_back({ seq, dp.id_last, dp.pos0, n, 0.0f, dp.p_min, 0, dp.result->data(), nullptr, nullptr, 0 });
            }
        }
        driver->draft(requests);
        for (const auto & r : requests) {
            dparams[(size_t) r.seq].result->resize((size_t) r.n_tokens);
        }
        report();
    }

    void accept(llama_seq_id seq, uint16_t n_accepted, bool is_other) override {
        if (known(seq)) {
            driver->accept(seq, 1 + n_accepted, is_other ? 0 : n_accepted);
        }
    }

    void shift(llama_seq_id seq, const llama_tokens &, llama_pos n_discard) override {
        if (known(seq)) {
            driver->shift(seq, 0, n_discard);
        }
    }

    void forget(llama_seq_id seq) override {
        if (known(seq)) {
            driver->truncate(seq, 0);
        }
    }

    llama_pos reusable(llama_seq_id seq, llama_pos end) const override { return known(seq) ? driver->reusable(seq, end) : end; }

    void copy(llama_seq_id from, llama_seq_id to) override {
        if (known(from) && known(to)) {
            driver->copy(from, to, -1);
        }
    }

    bool get_state(llama_seq_id seq, std::vector<uint8_t> & data) const override {
        if (!known(seq)) {
            return false;
        }
        data.resize(driver->state_size(seq, false));
        return driver->get_state(seq, false, data.data(), data.size()).empty();
    }

    void set_state(llama_seq_id seq, const std::vector<uint8_t> & data) override {
        if (!known(seq)) {
            return;
        }
        const std::string wrong = driver->set_state(seq, false, data.data(), data.size());
        if (!wrong.empty()) {
            LOG_WRN("drafter %s, slot %d: %s\n", common_speculative_type_to_str(type).c_str(), seq, wrong.c_str());
        }
    }
};

namespace pyllm::draft {

template <class Impls>
bool may_rest_all(const Impls & impls) {
    bool ours = false;
    for (const auto & impl : impls) {
        const bool driven = dynamic_cast<const common_speculative_impl_driven *>(impl.get()) != nullptr;
        if (!driven && impl->type < COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE) {
            return false;
        }
        ours = ours || driven;
    }
    return ours;
}

// Tells /metrics what the drafters have done so far; last: per sequence, the one whose draft it had last, or NULL.
template <class Impls, class Last>
void tell(const Impls & impls, const Last & last) {
    std::vector<drafter_report> drafters;
    std::vector<int32_t>        places(last.size(), -1);
    for (const auto & impl : impls) {
        for (size_t seq = 0; seq < last.size(); ++seq) {
            places[seq] = last[seq] == impl.get() ? (int32_t) drafters.size() : places[seq];
        }
        drafter_report one;
        one.name          = common_speculative_type_to_str(impl->type);
        one.n_max         = impl->n_max;
        one.n_drafts      = impl->n_gen_drafts;
        one.n_drafted     = impl->n_gen_tokens;
        one.n_accepted    = impl->n_acc_tokens;
        one.seconds_draft = 1e-6 * (double) impl->t_draft_us;
        if (const auto * driven = dynamic_cast<const common_speculative_impl_driven *>(impl.get())) {
            const counters & counts = driven->driver->stats();
            one.ours         = true;
            one.n_decodes    = counts.n_decodes;
            one.n_rows       = counts.n_injected;
            one.n_failures   = counts.n_failures;
            one.seconds_rows = 1e-6 * (double) driven->t_rows_us;
            one.off.resize(driven->n_seq);
            for (llama_seq_id seq = 0; seq < (llama_seq_id) driven->n_seq; ++seq) {
                if (driven->driver->off(seq)) {
                    one.off[(size_t) seq] = driven->driver->why(seq);
                }
            }
        }
        drafters.push_back(std::move(one));
    }
    tell_drafters(std::move(drafters), std::move(places));
}

} // namespace pyllm::draft
