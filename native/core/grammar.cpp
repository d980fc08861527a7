#include "core/grammar.h"

#include "core/error.h"
#include "core/fingerprint.h"
#include "core/grammar_budget.h"
#include "core/json_schema.h"
#include "core/library.h"
#include "core/model.h"

#include <algorithm>

namespace pyllm {
namespace {

constexpr size_t max_work   = 200'000'000; // elements of one step; also bounds its memory, to some 200 MB
constexpr size_t max_stacks = 4096;        // ways to have read the text so far

[[noreturn]] void too_ambiguous() {
    throw failure(PYLLM_LIMIT, format("the grammar is too ambiguous here: it can read the text in more than %zu ways, or a token takes more than %zu steps", max_stacks, max_work),
                  "write it so that each text can be read in one way");
}

bool is_terminal(llama_gretype type) {
    return type == LLAMA_GRETYPE_CHAR || type == LLAMA_GRETYPE_CHAR_NOT || type == LLAMA_GRETYPE_CHAR_ANY || type == LLAMA_GRETYPE_TOKEN || type == LLAMA_GRETYPE_TOKEN_NOT;
}

} // namespace

grammar::grammar(const llama_vocab * vocab, const std::string & text) : impl(nullptr, llama_grammar_free_impl) {
    grammar_rules parsed = parse_grammar(vocab, text);
    std::vector<const llama_grammar_element *> rows;
    fingerprint print;
    print.add(parsed.root);
    for (const auto & rule : parsed.rules) {
        rows.push_back(rule.data());
        for (const auto & element : rule) {
            print.add((uint32_t) element.type);
            print.add(element.value);
        }
    }
    rules_identity = print.value();
    log_errors_clear();
    try {
        const grammar_budget budget(max_work);
        impl.reset(llama_grammar_init_impl(vocab, rows.data(), rows.size(), parsed.root));
    } catch (const grammar_exhausted &) {
        too_ambiguous();
    }
    require(impl != nullptr, PYLLM_INVALID_ARGUMENT, "the grammar was refused: " + log_errors(), "the grammar has to be GBNF with a rule `root`");
    check_stacks();
    start = position();
}

grammar::~grammar() = default;

void grammar::check_stacks() const {
    if (impl->stacks.size() > max_stacks) {
        too_ambiguous();
    }
}

void grammar::reset() { set_position(start); }

void grammar::mask(llama_token_data * tokens, size_t n) const {
    llama_token_data_array array = { tokens, n, -1, false };
    try {
        const grammar_budget budget(max_work);
        llama_grammar_apply_impl(*impl, &array);
    } catch (const grammar_exhausted &) {
        too_ambiguous();
    }
}

bool grammar::allows(llama_token token) const {
    llama_token_data data = { token, 0.0f, 0.0f };
    mask(&data, 1);
    return data.logit == 0.0f;
}

void grammar::accept(llama_token token) {
    const auto refuse = [&] {
        throw failure(PYLLM_INVALID_ARGUMENT, format("the grammar does not allow token %d here", token), "accept only tokens that this sampler returned, in their order");
    };
    if (!allows(token)) {
        refuse();
    }
    const auto stacks = impl->stacks;
    const auto partial = impl->partial_utf8;
    const auto back = [&] {
        impl->stacks       = stacks;
        impl->partial_utf8 = partial;
    };
    try {
        const grammar_budget budget(max_work);
        llama_grammar_accept_impl(*impl, token);
        check_stacks();
    } catch (const grammar_exhausted &) {
        back();
        too_ambiguous();
    } catch (const failure &) {
        back();
        throw;
    } catch (const std::exception &) {
        // A token that the grammar names in the middle of characters passes upstream's mask, but nothing is left after it.
        back();
        refuse();
    }
}

std::vector<uint32_t> grammar::position() const {
    std::vector<std::pair<const llama_grammar_element *, uint32_t>> starts; // of the rules, by address
    for (size_t r = 0; r < impl->rules.size(); ++r) {
        starts.emplace_back(impl->rules[r].data(), (uint32_t) r);
    }
    std::sort(starts.begin(), starts.end());
    std::vector<uint32_t> flat = { impl->partial_utf8.value, (uint32_t) impl->partial_utf8.n_remain, (uint32_t) impl->stacks.size() };
    for (const auto & stack : impl->stacks) {
        flat.push_back((uint32_t) stack.size());
        for (const llama_grammar_element * element : stack) {
            const auto rule = std::prev(std::upper_bound(starts.begin(), starts.end(), std::make_pair(element, UINT32_MAX)));
            flat.push_back(rule->second);
            flat.push_back((uint32_t) (element - rule->first));
        }
    }
    return flat;
}

void grammar::set_position(const std::vector<uint32_t> & flat) {
    const auto check = [](bool ok) { require(ok, PYLLM_STATE, "the saved place in the grammar is not one of this grammar", "take the state of a sampler with the same grammar"); };
    const auto & rules = impl->rules;
    check(flat.size() >= 3 && (int32_t) flat[1] >= -1 && (int32_t) flat[1] <= 3 && flat[2] >= 1 && flat[2] <= max_stacks);
    llama_grammar_stacks stacks;
    size_t at = 3;
    for (uint32_t s = 0; s < flat[2]; ++s) {
        check(at < flat.size() && flat[at] <= (flat.size() - at - 1) / 2);
        llama_grammar_stack stack;
        const uint32_t depth = flat[at++];
        for (uint32_t d = 0; d < depth; ++d, at += 2) {
            check(flat[at] < rules.size() && flat[at + 1] < rules[flat[at]].size());
            const llama_grammar_element * element = &rules[flat[at]][flat[at + 1]];
            // The matcher goes on from each of them, and asserts that it can.
            check(is_terminal(element->type) || (element->type == LLAMA_GRETYPE_RULE_REF && d + 1 < depth));
            stack.push_back(element);
        }
        stacks.push_back(std::move(stack));
    }
    check(at == flat.size());
    impl->stacks       = std::move(stacks);
    impl->partial_utf8 = { flat[0], (int) (int32_t) flat[1] };
}

} // namespace pyllm

using namespace pyllm;

extern "C" {

pyllm_status pyllm_grammar_check(const pyllm_model * model, const char * text) {
    return guard([&] {
        not_null(text, "text");
        library_init();
        const grammar parsed(model == nullptr ? nullptr : model->vocab(), text);
    });
}

pyllm_status pyllm_grammar_from_json_schema(const char * schema, char * text, size_t capacity, size_t * length) {
    return guard([&] {
        not_null(schema, "schema");
        not_null(length, "length");
        library_init();
        copy_text(grammar_of_schema(schema), text, capacity, length);
    });
}

} // extern "C"
