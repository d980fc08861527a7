// DFlash and DFlash2: all tokens of a draft in one decode, from a block of mask tokens that sees the target's layer inputs through its memory.
#pragma once

#include "draft/driver.h"

namespace pyllm::draft {

class block : public driver {
public:
    explicit block(const settings & config);
    const char * kind() const override { return "dflash"; }

protected:
    bool    takes(const common_batch & batch) const override;
    void    find_rows() override;
    bool    stash_rows(const common_batch & batch, const run & rows, int32_t skip, const float * before) override;
    bool    inject(const std::vector<part> & parts) override;
    int32_t inject_limit() const override;
    bool    draft_group(const std::vector<request *> & group) override;

private:
    int32_t length(const request & r) const; // of its block
    bool    decode_blocks(const std::vector<request *> & group);
    void    read_block(request & r, int32_t begin);
    void    walk_lattice(request & r, int32_t begin);

    const int32_t *    layers_; // of the target, whose inputs are tapped
    size_t             n_layers_;
    size_t             n_embd_tgt_;
    std::vector<const float *> inputs_; // of the target's last batch, by tap
    size_t             n_embd_dft_;
    int32_t            selector_top_k_; // DFlash2: entries of each position of its lattice, 0: there is none
    llama_token        mask_;
    common_batch       batch_;
    device_samplers    samplers_;
};

} // namespace pyllm::draft
