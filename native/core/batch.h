#pragma once

#include "core/context.h"

struct pyllm_batch {
    std::shared_ptr<pyllm::context_state> context;
    common_batch tokens;
};
