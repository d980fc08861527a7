// JSON schema to GBNF, by upstream's converter; what it would silently leave out, loop on or overflow its stack with is refused before.
#pragma once

#include <string>

namespace pyllm {

// Throws INVALID_ARGUMENT with the place (`#/properties/name`) and the reason: text that is not JSON, a schema that is not one, that
// nothing can meet, or with keywords that a grammar cannot enforce.
std::string grammar_of_schema(const std::string & text);

} // namespace pyllm
