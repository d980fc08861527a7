// A grammar (GBNF) and the place in it that the accepted tokens have reached.
#pragma once

#include "core/grammar_text.h"

#include "llama.h"

#include <memory>
#include <string>
#include <vector>

struct llama_grammar;

namespace pyllm {

class grammar {
public:
    // Throws INVALID_ARGUMENT with line and column for text that does not parse, that recurses on the left or that is too large.
    grammar(const llama_vocab * vocab, const std::string & text);
    ~grammar();
    grammar(const grammar &) = delete;
    grammar & operator=(const grammar &) = delete;

    void reset();
    // Sets the logit of every token that may not come next to -inf. Throws LIMIT when the grammar is too ambiguous here.
    void mask(llama_token_data * tokens, size_t n) const;
    bool allows(llama_token token) const;
    // All or nothing: throws INVALID_ARGUMENT for a token that may not come next, and stays where it was.
    void accept(llama_token token);

    // Of the parsed rules: positions are exchangeable between grammars of equal identity.
    uint64_t identity() const { return rules_identity; }
    // Flat numbers: partial code point, bytes missing of it, number of stacks; then of each its depth and (rule, element) pairs.
    std::vector<uint32_t> position() const;
    // Throws STATE, and stays where it was, for numbers that are not a position in these rules.
    void set_position(const std::vector<uint32_t> & flat);

private:
    std::unique_ptr<llama_grammar, void (*)(llama_grammar *)> impl;
    std::vector<uint32_t> start;
    uint64_t              rules_identity = 0;

    void check_stacks() const;
};

} // namespace pyllm
