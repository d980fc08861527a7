// Which driver a type of drafter has.
#include "draft/block.h"
#include "draft/steps.h"

#include "../src/llama-ext.h"
#include "speculative.h"

#include <stdexcept>

namespace pyllm::draft {

namespace {

step_kind mtp_kind(const settings & config) {
    if (llama_get_ctx_other(config.ctx_dft) == config.ctx_tgt) {
        return step_kind::shared;
    }
    return llama_model_n_layer_nextn(llama_get_model(config.ctx_dft)) > 1 ? step_kind::chained : step_kind::heads;
}

} // namespace

std::unique_ptr<driver> make_driver(common_speculative_type type, const settings & config) {
    if (config.ctx_tgt == nullptr || config.ctx_dft == nullptr) {
        throw std::runtime_error("drafter type `" + common_speculative_type_to_str(type) + "` needs a draft model");
    }
    if (llama_n_seq_max(config.ctx_dft) != llama_n_seq_max(config.ctx_tgt)) {
        throw std::runtime_error("the draft context has " + std::to_string(llama_n_seq_max(config.ctx_dft)) + " sequences, the target's " +
                                 std::to_string(llama_n_seq_max(config.ctx_tgt)));
    }
    switch (type) {
        case COMMON_SPECULATIVE_TYPE_DRAFT_MTP:    return std::make_unique<steps>(config, mtp_kind(config));
        case COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE: return std::make_unique<steps>(config, step_kind::model);
        case COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH: return std::make_unique<block>(config);
        default: throw std::runtime_error("drafter type `" + common_speculative_type_to_str(type) + "` has no driver here");
    }
}

} // namespace pyllm::draft
