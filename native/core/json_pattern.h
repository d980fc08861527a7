// Regular expressions in JSON schemas: which of them a grammar can stand for.
#pragma once

#include <string>

namespace pyllm {

// Throws INVALID_ARGUMENT with the schema's place for a pattern that upstream would drop, or would translate to texts that are no JSON.
void check_pattern(const std::string & pattern, const std::string & path);

[[noreturn]] void refuse_schema(const std::string & path, const std::string & why, const std::string & hint);

} // namespace pyllm
