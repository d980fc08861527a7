// The verify route: a few query rows over a long cache whose K and V are read once, as they are stored.
#pragma once

#include "common.cuh"

// Computes the FLASH_ATTN_EXT node `dst`; its tensors have been checked by pyllm::route::contradiction, and the table sends only what an instance takes.
// Scratch comes from the context's pool.
void pyllm_fattn_verify(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
