#pragma once

// Which model a file holds, told in milliseconds.

#include <string>

namespace pyllm::state {

// 16 hexadecimal digits that are equal for copies of a GGUF file, and differ for two models, of the same shape too: a hash of its size, its
// first and last MiB, and 256 samples of 4 KiB that lie evenly between them; of all parts where `path` is one of a split model. Two files that
// differ only between the samples get the same one. Throws pyllm::failure with PYLLM_NOT_FOUND or, for what cannot be read, PYLLM_MODEL_FORMAT.
std::string fingerprint(const std::string & path);

} // namespace pyllm::state
