#pragma once

// A slot's conversation as one file (native/state): what the target and the drafter computed, the drafters' own rows, the context checkpoints and the
// tokens. Restored, the slot goes on as if it had never been left.

#include "server-task.h"

#include "common.h"
#include "llama.h"
#include "speculative.h"

#include <cstddef>
#include <functional>
#include <string>

namespace pyllm::server {

// a slot, as far as its file is concerned
struct slot_place {
    llama_seq_id         id;
    llama_context *      ctx_tgt;
    llama_context *      ctx_dft; // may be null
    common_speculative * spec;    // may be null
    int32_t              n_ctx;   // tokens the slot can hold
    bool                 has_media;
    const common_params & params;
};

// Writes the conversation of an idle slot and returns the bytes of the file. At any moment the file at `path` is the old one or the whole new one.
// Throws std::runtime_error with the reason and the way out.
size_t save_slot(const slot_place & slot, const server_prompt & prompt, const std::string & path);

// Reads one into an idle slot and returns its bytes. A file that is damaged, newer, or of another model, drafter or KV type is refused before
// anything changes; clear() empties the slot, memory and drafters included, before it is filled. Throws std::runtime_error; after a failure that
// came later the caller has to empty the slot again.
size_t restore_slot(const slot_place & slot, server_prompt & prompt, const std::string & path, const std::function<void()> & clear);

} // namespace pyllm::server
