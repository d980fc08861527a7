// GBNF text to rules: everything that could make upstream's parser or matcher hang, overflow its stack or exhaust memory is refused here.
#pragma once

#include "llama-grammar.h"

#include <string>
#include <vector>

namespace pyllm {

struct grammar_rules {
    llama_grammar_rules      rules;
    std::vector<std::string> names; // of each rule; of a generated one, that of the rule it stands in
    uint32_t                 root = 0;

    // Whether any text at all is complete: a rule that always needs itself again never ends.
    bool can_end() const;
};

// Throws INVALID_ARGUMENT with the place. vocab may be NULL: then a token cannot be named by its text (`<think>`).
grammar_rules parse_grammar(const llama_vocab * vocab, const std::string & text);

} // namespace pyllm
