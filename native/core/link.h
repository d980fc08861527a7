// One drafter of a chain: a model with a context of its own, or an n-gram index.
#pragma once

#include "core/context.h"
#include "core/model.h"
#include "draft/driver.h"
#include "pyllm.h"

#include "common.h"

#include <memory>
#include <string>
#include <vector>

namespace pyllm {

class chain_link {
public:
    virtual ~chain_link() = default;

    int32_t n_max() const { return n_max_; }
    virtual void get_info(pyllm_drafter_link_info & info) const = 0;
    virtual bool needs_rows() const { return false; }
    virtual bool can_shift() const { return true; }
    // What the target has to hand out for process(); throws INVALID_ARGUMENT where it was switched off.
    virtual void check_taps() const {}

    virtual void process(const common_batch &) {}
    virtual void begin(int32_t seq, const llama_tokens & history) = 0;
    // history by sequence: what the target's memory holds
    virtual void draft(std::vector<draft::request> & requests, const std::vector<llama_tokens> & history) = 0;
    // n_drafted: -1 where another link drafted
    virtual void accept(int32_t seq, int32_t n_rows, int32_t n_drafted) = 0;
    virtual void truncate(int32_t, int32_t) {}
    virtual int32_t reusable(int32_t, int32_t end) const { return end; }
    virtual void shift(int32_t, int32_t, int32_t, const llama_tokens &) {}
    virtual void copy(int32_t, int32_t, int32_t) {}
    virtual size_t state_size(int32_t, bool) { return 0; }
    virtual void get_state(int32_t, bool, uint8_t *, size_t) {}
    virtual void set_state(int32_t, bool, const uint8_t *, size_t) {}
    virtual std::string why(int32_t) const { return ""; }
    virtual void fail_next(int32_t) {}

protected:
    int32_t n_max_ = 0;
};

// Throws INVALID_ARGUMENT, UNSUPPORTED or INCOMPATIBLE with the reason.
std::unique_ptr<chain_link> make_link(const std::shared_ptr<context_state> & target, const std::string & type, const pyllm_model * model, const pyllm_drafter_params & params);

} // namespace pyllm
