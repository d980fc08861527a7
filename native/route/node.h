// An attention node of a ggml graph as a key: what its tensors say about it.
#pragma once

#include "route/route.h"

#include <string>

struct ggml_tensor;

namespace pyllm::route {

// Bytes: the largest power of two up to 16 that divides every stride above the first, and the offset, of a tensor. Buffers start aligned.
int32_t alignment(const ggml_tensor * tensor);

// V reads the memory of K from its first byte on.
bool is_view(const ggml_tensor * k, const ggml_tensor * v);

// Empty if Q, K, V, mask and sinks belong together; else what contradicts what. A node that fails this was corrupted: a stale graph, recycled tensors.
std::string contradiction(const ggml_tensor * node);

// Fills the node's axes of a FLASH_ATTN_EXT node that has no contradiction; the device's stay as they are.
void describe(const ggml_tensor * node, Key & key);

// Name, shapes, strides, types and parameters, for people.
std::string node_text(const ggml_tensor * node);

}  // namespace pyllm::route
