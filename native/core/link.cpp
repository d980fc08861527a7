#include "core/link.h"

#include "core/error.h"
#include "core/library.h"
#include "draft/context_size.h"
#include "draft/target_match.h"
#include "draft/tentative.h"

#include "llama-ext.h"
#include "speculative.h"

#include <algorithm>
#include <cstdio>

namespace pyllm {

namespace {

const common_speculative_type known_types[] = {
    COMMON_SPECULATIVE_TYPE_DRAFT_MTP,   COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH, COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE,  COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE,
    COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K, COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V, COMMON_SPECULATIVE_TYPE_NGRAM_MOD,
};

common_speculative_type parse_type(const std::string & name) {
    std::string known;
    for (const auto type : known_types) {
        if (common_speculative_type_to_str(type) == name) {
            return type;
        }
        known += (known.empty() ? "" : ", ") + common_speculative_type_to_str(type);
    }
    throw failure(PYLLM_INVALID_ARGUMENT, format("no drafter type is named `%s`", name.c_str()), "choose from " + known);
}

bool has_model(common_speculative_type type) {
    return type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP || type == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH || type == COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE;
}

void put_stats(pyllm_drafter_link_info & info, const draft::counters & stats) {
    info.n_drafts         = stats.n_drafts;
    info.n_drafted        = stats.n_drafted;
    info.n_accepted       = stats.n_accepted;
    info.n_failures       = stats.n_failures;
    info.n_decodes        = stats.n_decodes;
    info.n_inject_decodes = stats.n_inject_decodes;
    info.n_injected       = stats.n_injected;
}

void put_type(pyllm_drafter_link_info & info, common_speculative_type type) {
    std::snprintf(info.type, sizeof(info.type), "%s", common_speculative_type_to_str(type).c_str());
}

llama_context_ptr create_context(llama_model * model, const context_state & target, const pyllm_drafter_params & params, bool mtp, int32_t n_max, int32_t n_threads) {
    llama_context_params cparams = llama_context_default_params();
    const uint32_t n_shares = target.kv_unified ? 1 : llama_n_seq_max(target.ctx);
    cparams.n_ctx           = params.n_ctx != 0 ? params.n_ctx : llama_n_ctx(target.ctx);
    cparams.n_seq_max       = llama_n_seq_max(target.ctx);
    const uint64_t n_least = 2 * ((uint64_t) n_max + 1);
    require(cparams.n_ctx / n_shares >= n_least, PYLLM_INVALID_ARGUMENT,
            format("n_ctx %u of the drafter leaves %u cells for one sequence; drafts of %d tokens need %llu at least", cparams.n_ctx, cparams.n_ctx / n_shares, n_max, (unsigned long long) n_least),
            "raise it, or leave it out to have as many as the target");
    cparams.n_batch         = llama_n_batch(target.ctx);
    cparams.n_ubatch        = llama_n_ubatch(target.ctx);
    cparams.n_rs_seq        = 0;
    cparams.ctx_type        = mtp ? LLAMA_CONTEXT_TYPE_MTP : LLAMA_CONTEXT_TYPE_DEFAULT;
    cparams.ctx_other       = target.ctx;
    cparams.kv_unified      = target.kv_unified;
    cparams.type_k          = (ggml_type) params.type_k;
    cparams.type_v          = (ggml_type) params.type_v;
    cparams.n_threads       = n_threads;
    cparams.n_threads_batch = n_threads;
    cparams.no_perf         = true;
    // One row per sequence and step; a block drafter reads all of its block at once.
    cparams.n_outputs_max         = cparams.n_seq_max;
    cparams.n_outputs_max_per_seq = 1;
    if (model_block_size(model) > 0) {
        cparams.n_outputs_max_per_seq = (uint32_t) n_max + 1;
        size_block_context(cparams, model, n_max, (int32_t) cparams.n_seq_max);
    }
    // Every sequence takes part in a step.
    cparams.n_batch = std::max(cparams.n_batch, cparams.n_seq_max * ((uint32_t) std::max(1, llama_model_n_layer_nextn(model)) + 1));
    log_errors_clear();
    const abort_is_exception caught;
    const tentative_tokens tentative((uint32_t) n_max); // what is drafted is taken out again
    llama_context_ptr ctx(llama_init_from_model(model, cparams));
    require(ctx != nullptr, PYLLM_UNSUPPORTED, "the draft context could not be created: " + log_errors(), "use a smaller context or fewer slots, or run without this drafter");
    return ctx;
}

// A sampler on the device is a graph of its own for each row of the draft. Rows of a small vocabulary are on the host, and searched, before it is done.
bool samples_on_device(const llama_model * model) {
    constexpr int32_t small = 32768;
    return llama_model_n_devices(model) > 0 && llama_vocab_n_tokens(llama_model_get_vocab(model)) > small;
}

class model_link : public chain_link {
public:
    model_link(std::shared_ptr<context_state> target, common_speculative_type type, const pyllm_model * draft, const pyllm_drafter_params & params)
        : target_(std::move(target)), type_(type) {
        const bool mtp = type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP;
        const auto mismatch = find_target_mismatch(draft != nullptr ? draft->model.get() : nullptr, target_->model.get(), { type });
        require(mismatch.message.empty(), mismatch.unsupported ? PYLLM_UNSUPPORTED : PYLLM_INCOMPATIBLE, mismatch.message, mismatch.hint);
        require(draft == nullptr || !draft->vocab_only, PYLLM_UNSUPPORTED, "the draft model was loaded with its vocabulary only", "load it without vocab_only");
        require(!mtp || (draft != nullptr ? draft->has_mtp : target_->has_mtp), PYLLM_INVALID_ARGUMENT, "the model's prediction heads were not loaded", "load it with load_mtp");
        if (draft != nullptr) {
            model_ = draft->model;
        }
        llama_model * model = draft != nullptr ? draft->model.get() : target_->model.get();
        const int32_t block = model_block_size(model);
        draft::settings config;
        config.n_max = params.n_max > 0 ? params.n_max : block > 0 ? std::max(1, block - 1) : config.n_max;
        if (type == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH) {
            require(block >= 2, PYLLM_MODEL_FORMAT, format("the DFlash drafter's block size is %d; at least 2 are needed", block));
            config.n_max = std::min(config.n_max, block - 1);
            for (uint32_t i = 0; i < llama_model_target_layer_ids_n(model); ++i) {
                enable_layer_input(*target_, llama_model_target_layer_ids(model)[i], true);
            }
        }
        const int32_t n_threads = params.n_threads != 0 ? params.n_threads : target_->n_threads;
        ctx_ = create_context(model, *target_, params, mtp, config.n_max, n_threads);
        common_params threads;
        threads.cpuparams.n_threads = threads.cpuparams_batch.n_threads = n_threads;
        threadpools_ = std::make_unique<common_threadpools>();
        threadpools_->init(ctx_.get(), threads);

        config.ctx_tgt         = target_->ctx;
        config.ctx_dft         = ctx_.get();
        config.n_min           = std::max(0, params.n_min);
        config.p_min           = params.p_min;
        config.stash_bytes     = params.stash_bytes > 0 ? (size_t) params.stash_bytes : config.stash_bytes;
        config.device_sampling = params.device_sampling >= 0 ? params.device_sampling == 1 : samples_on_device(model);
        try {
            const abort_is_exception caught;
            driver_ = draft::make_driver(type, config);
        } catch (const std::exception & e) {
            throw failure(PYLLM_UNSUPPORTED, e.what(), "use another drafter, or none");
        }
        n_max_ = driver_->n_max();
        if (mtp) {
            target_->nextn = true;
            target_->nextn_masked = false;
        }
        target_->n_rows = 0; // rows of earlier decodes lack what was switched on now
        target_->outputs.clear();
    }

    ~model_link() override {
        driver_.reset(); // detaches its samplers from the context
        if (ctx_) {
            llama_detach_threadpool(ctx_.get());
        }
    }

    void get_info(pyllm_drafter_link_info & info) const override {
        put_type(info, type_);
        const std::string kind = driver_->kind();
        info.n_max         = n_max_;
        info.n_ctx         = (int32_t) llama_n_ctx(ctx_.get());
        info.n_ubatch      = (int32_t) llama_n_ubatch(ctx_.get());
        info.block_size    = model_block_size(llama_get_model(ctx_.get()));
        info.has_context   = true;
        info.shares_memory = kind == "mtp-shared";
        info.chained_heads = kind == "mtp-chained";
        info.can_shift     = can_shift();
        put_stats(info, driver_->stats());
    }

    bool needs_rows() const override { return true; }
    bool can_shift() const override { return driver_->memory().shifts(); }

    void check_taps() const override {
        const std::string name = common_speculative_type_to_str(type_);
        require(type_ != COMMON_SPECULATIVE_TYPE_DRAFT_MTP || (target_->nextn && !target_->nextn_masked), PYLLM_INVALID_ARGUMENT,
                format("the target's hidden rows were switched %s, `%s` reads them all", target_->nextn ? "to those of outputs" : "off", name.c_str()),
                "call pyllm_context_enable_nextn again before the decode");
        if (type_ == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH) {
            const llama_model * model = llama_get_model(ctx_.get());
            for (uint32_t i = 0; i < llama_model_target_layer_ids_n(model); ++i) {
                const size_t layer = (size_t) llama_model_target_layer_ids(model)[i];
                require(target_->layer_inputs[layer], PYLLM_INVALID_ARGUMENT, format("the input of the target's layer %zu was switched off, `%s` reads it", layer, name.c_str()),
                        "call pyllm_context_enable_layer_input again before the decode");
            }
        }
    }

    void process(const common_batch & batch) override { driver_->process(batch); }
    void begin(int32_t seq, const llama_tokens &) override { driver_->begin(seq); }
    void draft(std::vector<draft::request> & requests, const std::vector<llama_tokens> &) override { driver_->draft(requests); }
    void accept(int32_t seq, int32_t n_rows, int32_t n_drafted) override { driver_->accept(seq, n_rows, std::max(0, n_drafted)); }
    void truncate(int32_t seq, int32_t end) override { driver_->truncate(seq, end); }
    int32_t reusable(int32_t seq, int32_t end) const override { return driver_->reusable(seq, end); }
    void shift(int32_t seq, int32_t n_keep, int32_t n_discard, const llama_tokens &) override { driver_->shift(seq, n_keep, n_discard); }
    void copy(int32_t from, int32_t to, int32_t end) override { driver_->copy(from, to, end); }
    size_t state_size(int32_t seq, bool partial) override { return driver_->state_size(seq, partial); }

    void get_state(int32_t seq, bool partial, uint8_t * data, size_t size) override {
        const std::string wrong = driver_->get_state(seq, partial, data, size);
        require(wrong.empty(), PYLLM_INTERNAL, wrong);
    }

    void set_state(int32_t seq, bool partial, const uint8_t * data, size_t size) override {
        const std::string wrong = driver_->set_state(seq, partial, data, size);
        require(wrong.empty(), PYLLM_STATE, wrong, "it belongs to another drafter, KV type or version; compute the tokens again");
    }

    std::string why(int32_t seq) const override { return driver_->why(seq); }
    void fail_next(int32_t n) override { driver_->fail_next(n); }

private:
    std::shared_ptr<context_state>      target_;
    common_speculative_type             type_;
    std::shared_ptr<llama_model>        model_; // empty: the heads are inside the target's file
    std::unique_ptr<common_threadpools> threadpools_;
    llama_context_ptr                   ctx_;
    std::unique_ptr<draft::driver>      driver_;
};

// Upstream's index of the tokens so far, of one type.
class ngram_link : public chain_link {
public:
    ngram_link(const context_state & target, common_speculative_type type, const pyllm_drafter_params & params) : type_(type), n_min_(params.n_min) {
        common_params_speculative spec;
        spec.types = { type };
        for (common_params_speculative_ngram_map * map : { &spec.ngram_simple, &spec.ngram_map_k, &spec.ngram_map_k4v }) {
            map->size_n   = params.ngram_size_n > 0 ? (uint16_t) params.ngram_size_n : map->size_n;
            map->size_m   = params.ngram_size_m > 0 ? (uint16_t) params.ngram_size_m : map->size_m;
            map->min_hits = params.ngram_min_hits > 0 ? (uint16_t) params.ngram_min_hits : map->min_hits;
        }
        if (params.ngram_size_n > 0) {
            spec.ngram_mod.n_match = params.ngram_size_n;
        }
        if (params.ngram_size_m > 0) {
            spec.ngram_mod.n_max = params.ngram_size_m;
            spec.ngram_mod.n_min = std::min(spec.ngram_mod.n_min, params.ngram_size_m);
        }
        log_errors_clear();
        const uint32_t n_seq = llama_n_seq_max(target.ctx);
        spec_.reset(common_speculative_init(spec, n_seq));
        require(spec_ != nullptr, PYLLM_UNSUPPORTED, "upstream made no drafter: " + log_errors());
        n_max_ = common_speculative_n_max(spec_.get());
        if (params.n_max > 0) {
            n_max_ = std::min(n_max_, params.n_max);
        }
        results_.resize(n_seq);
    }

    void get_info(pyllm_drafter_link_info & info) const override {
        put_type(info, type_);
        info.n_max     = n_max_;
        info.can_shift = true;
        put_stats(info, stats_);
    }

    // What a map has learned depends on how often it was asked: it starts over, so that drafts follow from the history alone.
    void begin(int32_t seq, const llama_tokens & history) override {
        common_speculative_shift(spec_.get(), seq, history, 0);
        common_speculative_begin(spec_.get(), seq, history);
    }

    void draft(std::vector<draft::request> & requests, const std::vector<llama_tokens> & history) override {
        for (draft::request & r : requests) {
            llama_tokens & result = results_[(size_t) r.seq];
            result.clear();
            auto & dp = common_speculative_get_draft_params(spec_.get(), r.seq);
            dp.drafting = r.n_max > 0;
            dp.n_max    = std::min(r.n_max, n_max_);
            dp.pos0     = r.pos;
            dp.id_last  = r.last;
            dp.prompt   = &history[(size_t) r.seq];
            dp.result   = &result;
        }
        common_speculative_draft(spec_.get());
        for (draft::request & r : requests) {
            const llama_tokens & result = results_[(size_t) r.seq];
            r.n_tokens = std::min({ (int32_t) result.size(), r.n_max, n_max_ });
            r.n_tokens = r.n_tokens < n_min_ ? 0 : r.n_tokens;
            for (int32_t i = 0; i < r.n_tokens; ++i) {
                draft::candidates only;
                only.add(result[(size_t) i], 0.0f); // found, not drawn: its distribution is that token
                const size_t place = (size_t) i * PYLLM_DRAFT_CANDIDATES;
                draft::choose(only, 0.0f, 0, 0, r.q_ids != nullptr ? r.q_ids + place : nullptr, r.q_probs != nullptr ? r.q_probs + place : nullptr);
                r.tokens[i] = result[(size_t) i];
            }
            stats_.n_drafts  += r.n_tokens > 0;
            stats_.n_drafted += (uint64_t) r.n_tokens;
        }
    }

    void accept(int32_t seq, int32_t, int32_t n_drafted) override {
        if (n_drafted >= 0) {
            common_speculative_accept(spec_.get(), seq, (uint16_t) n_drafted);
            stats_.n_accepted += (uint64_t) n_drafted;
        }
    }

    // The indexes count from the start of the history, which has moved.
    void shift(int32_t seq, int32_t, int32_t n_discard, const llama_tokens & history) override {
        common_speculative_shift(spec_.get(), seq, history, n_discard);
        common_speculative_begin(spec_.get(), seq, history);
    }

private:
    common_speculative_type   type_;
    common_speculative_ptr    spec_;
    int32_t                   n_min_;
    std::vector<llama_tokens> results_;
    draft::counters           stats_;
};

} // namespace

std::unique_ptr<chain_link> make_link(const std::shared_ptr<context_state> & target, const std::string & name, const pyllm_model * model, const pyllm_drafter_params & params) {
    const auto type = parse_type(name);
    if (has_model(type)) {
        return std::make_unique<model_link>(target, type, model, params);
    }
    require(model == nullptr, PYLLM_INVALID_ARGUMENT, format("drafter type `%s` uses no draft model, but one is given", name.c_str()), "leave the draft model out");
    return std::make_unique<ngram_link>(*target, type, params);
}

} // namespace pyllm
