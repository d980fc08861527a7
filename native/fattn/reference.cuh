// The reference route: attention of any shape, K/V type, mask and alignment.
#pragma once

#include "common.cuh"

// Computes the FLASH_ATTN_EXT node `dst`; its tensors have been checked by pyllm::route::contradiction. Scratch comes from the context's pool.
void pyllm_fattn_reference(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
