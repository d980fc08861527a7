// Autoregressive drafters: prediction heads (MTP) and plain draft models.
#pragma once

#include "draft/driver.h"

namespace pyllm::draft {

// What a step reads. `heads`: one head, fed its own hidden row; `chained`: a head of its own for each token, and every head has its layer's cells for
// all positions; `shared`: attention over the target's cells, all tokens of a draft at one position; `model`: tokens alone.
enum class step_kind { heads, chained, shared, model };

class steps : public driver {
public:
    steps(const settings & config, step_kind kind);
    const char * kind() const override;

protected:
    bool    takes(const common_batch & batch) const override;
    void    find_rows() override;
    bool    stash_rows(const common_batch & batch, const run & rows, int32_t skip, const float * before) override;
    bool    inject(const std::vector<part> & parts) override;
    int32_t inject_limit() const override;
    bool    draft_group(const std::vector<request *> & group) override;

private:
    struct draft_state {
        request *          r;
        bool               drafting;
        int32_t            index; // of its output in the batch
        std::vector<float> rows;  // input rows: of `last`, and of each token drafted so far
    };

    int32_t n_heads() const;
    void    select_head(int32_t head);
    bool    fits_with(const std::vector<request *> & group) const;
    void    add(llama_token id, llama_pos pos, llama_seq_id seq, bool output, const float * row);
    bool    add_waiting(llama_seq_id seq);
    void    add_step(draft_state & s);
    bool    run_steps(std::vector<draft_state> & states);

    step_kind          kind_;
    size_t             width_; // of a hidden row, 0: tokens alone
    common_batch       batch_;
    device_samplers    samplers_;
    std::vector<float> zeros_;
    const float *      hidden_ = nullptr; // rows of the target's last batch; NULL: it handed out none
};

} // namespace pyllm::draft
