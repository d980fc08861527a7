#include "core/grammar_text.h"

#include "core/error.h"

#include <algorithm>
#include <cctype>
#include <cstring>

namespace pyllm {
namespace {

constexpr size_t   max_text        = 1 << 20; // bytes
constexpr size_t   max_elements    = 1 << 20; // of all rules, after repetitions are written out; 8 bytes each
constexpr uint64_t max_repetitions = 2000;    // upstream's; above it, it silently takes "without end"
constexpr int      max_nesting     = 512;     // of parentheses: upstream parses them by recursion
constexpr uint64_t max_depth       = 2048;    // of rules that begin with rules: upstream looks for left recursion by recursion
constexpr uint64_t max_visits      = 20'000'000; // of that search, which does not remember what it has seen

const char * const gbnf_hint = "the grammar has to be GBNF with a rule `root`";

std::string place(const std::string & text, size_t offset) {
    offset = std::min(offset, text.size());
    const size_t line  = 1 + (size_t) std::count(text.begin(), text.begin() + (ptrdiff_t) offset, '\n');
    const size_t start = offset == 0 ? 0 : text.rfind('\n', offset - 1) == std::string::npos ? 0 : text.rfind('\n', offset - 1) + 1;
    return format("line %zu, column %zu", line, offset - start + 1);
}

[[noreturn]] void refuse(const std::string & text, size_t offset, const std::string & why, const std::string & hint = gbnf_hint) {
    throw failure(PYLLM_INVALID_ARGUMENT, "the grammar does not parse: " + place(text, offset) + ": " + why, hint);
}

bool is_word(char c) { return std::isalnum((unsigned char) c) != 0 || c == '-'; }

// Walks over the text as the parser does and adds up what the repetitions will cost.
class text_check {
public:
    explicit text_check(const std::string & text) : text(text) {}

    void run() {
        int nesting = 0;
        for (size_t at = 0; at < text.size();) {
            const char c = text[at];
            if (c == '#' || std::isspace((unsigned char) c) != 0) {
                at = space(at);
            } else if (c == '"') {
                at = quoted(at, '"');
            } else if (c == '[') {
                at = quoted(at, ']');
            } else if (c == '<') {
                at   = std::min(text.find('>', at), text.size() - 1) + 1;
                item = 1;
            } else if (c == '(') {
                nesting += 1;
                if (nesting > max_nesting) {
                    refuse(text, at, format("more than %d parentheses in each other", max_nesting), "give the inner ones a rule of their own");
                }
                at += 1;
            } else if (c == ')') {
                nesting -= 1;
                item = 1;
                at += 1;
            } else if (c == '*' || c == '+' || c == '?') {
                repeat(at, c == '+' ? 1 : 0, 1, 1);
                at += 1;
            } else if (c == '{') {
                at = counted(at);
            } else {
                item = 1;
                at += 1;
                while (is_word(c) && at < text.size() && is_word(text[at])) {
                    at += 1;
                }
            }
        }
    }

private:
    const std::string & text;
    uint64_t item     = 0; // elements of what a repetition would repeat, at most
    uint64_t elements = 0;

    // Past the closing character, or at the end: the parser says what is wrong then.
    size_t quoted(size_t at, char closing) {
        const size_t begin = at;
        for (at += 1; at < text.size() && text[at] != closing; at += text[at] == '\\' ? 2 : 1) {
        }
        at   = std::min(at + 1, text.size());
        item = at - begin;
        return at;
    }

    size_t space(size_t at) const {
        while (at < text.size() && (std::isspace((unsigned char) text[at]) != 0 || text[at] == '#')) {
            at = text[at] == '#' ? std::min(text.find_first_of("\r\n", at), text.size()) : at + 1;
        }
        return at;
    }

    // The number at `at`; one over the limit stays just over it. UINT64_MAX: there is none.
    size_t number(size_t at, uint64_t & value) const {
        value = UINT64_MAX;
        for (; at < text.size() && std::isdigit((unsigned char) text[at]) != 0; ++at) {
            value = std::min<uint64_t>((value == UINT64_MAX ? 0 : value) * 10 + (uint64_t) (text[at] - '0'), max_repetitions + 1);
        }
        return space(at);
    }

    size_t counted(size_t at) {
        const size_t begin = at;
        uint64_t low = 0;
        uint64_t high = UINT64_MAX;
        at = number(space(at + 1), low);
        if (low == UINT64_MAX) {
            return at;
        }
        if (at < text.size() && text[at] == ',') {
            at = number(space(at + 1), high);
        } else {
            high = low;
        }
        if (low > max_repetitions || (high != UINT64_MAX && high > max_repetitions)) {
            refuse(text, begin, format("more than %d repetitions", (int) max_repetitions), "leave the upper number out, which means without end");
        }
        if (low > high) {
            refuse(text, begin, format("at least %d and at most %d repetitions", (int) low, (int) high), "the first number is the smaller one");
        }
        repeat(begin, low, high == UINT64_MAX ? 1 : high - low, std::max<uint64_t>(1, low));
        return at;
    }

    void repeat(size_t at, uint64_t low, uint64_t optional, uint64_t grows) {
        elements += item * low + optional * (item + 3);
        if (elements > max_elements) {
            refuse(text, at, format("the rules have more than %zu elements once their repetitions are written out", max_elements), "repeat less, or without end");
        }
        item = item * grows + 1;
    }
};

bool ends(const llama_grammar_element & element) { return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT; }

// Rules with an alternative all of whose elements are in the set; terminals are where `terminals` says so. Least fixed point.
std::vector<bool> closure(const llama_grammar_rules & rules, bool terminals) {
    struct alternative {
        size_t rule;
        size_t missing; // references not yet known to be in the set
    };
    std::vector<alternative>         alternatives;
    std::vector<std::vector<size_t>> uses(rules.size()); // alternatives by the rule they refer to
    std::vector<bool>                in(rules.size());
    std::vector<size_t>              todo;
    const auto add = [&](size_t rule) {
        if (!in[rule]) {
            in[rule] = true;
            todo.push_back(rule);
        }
    };
    for (size_t r = 0; r < rules.size(); ++r) {
        size_t missing = 0;
        bool   possible = true;
        std::vector<size_t> refs;
        for (const auto & element : rules[r]) {
            if (ends(element)) {
                if (possible && missing == 0) {
                    add(r);
                } else if (possible) {
                    for (const size_t ref : refs) {
                        uses[ref].push_back(alternatives.size());
                    }
                    alternatives.push_back({ r, missing });
                }
                missing  = 0;
                possible = true;
                refs.clear();
            } else if (element.type == LLAMA_GRETYPE_RULE_REF) {
                missing += 1;
                refs.push_back(element.value);
            } else {
                possible = possible && terminals;
            }
        }
    }
    while (!todo.empty()) {
        const size_t rule = todo.back();
        todo.pop_back();
        for (const size_t a : uses[rule]) {
            if (--alternatives[a].missing == 0) {
                add(alternatives[a].rule);
            }
        }
    }
    return in;
}

struct edge {
    size_t to;
    bool   grows; // something follows: each turn round a cycle makes the stack deeper
};

using graph = std::vector<std::vector<edge>>;

// Which rules a rule can begin with, past elements that `empty` says can be nothing.
graph beginnings(const llama_grammar_rules & rules, const std::vector<bool> & empty) {
    graph edges(rules.size());
    for (size_t r = 0; r < rules.size(); ++r) {
        bool at_start = true;
        for (size_t i = 0; i < rules[r].size(); ++i) {
            const auto & element = rules[r][i];
            if (ends(element)) {
                at_start = true;
            } else if (element.type == LLAMA_GRETYPE_RULE_REF && at_start) {
                edges[r].push_back({ element.value, !ends(rules[r][i + 1]) });
                at_start = empty[element.value];
            } else {
                at_start = false;
            }
        }
    }
    return edges;
}

// The strongly connected component of each rule (Tarjan, without recursion).
std::vector<size_t> components(const graph & edges) {
    const size_t none = SIZE_MAX;
    std::vector<size_t> number(edges.size(), none);
    std::vector<size_t> low(edges.size());
    std::vector<size_t> component(edges.size(), none);
    std::vector<size_t> open;
    std::vector<std::pair<size_t, size_t>> path; // rule, next edge
    size_t n = 0;
    for (size_t first = 0; first < edges.size(); ++first) {
        if (number[first] != none) {
            continue;
        }
        path.emplace_back(first, 0);
        while (!path.empty()) {
            const size_t rule = path.back().first;
            if (path.back().second == 0 && number[rule] == none) {
                number[rule] = low[rule] = n++;
                open.push_back(rule);
            }
            if (path.back().second < edges[rule].size()) {
                const size_t to = edges[rule][path.back().second++].to;
                if (number[to] == none) {
                    path.emplace_back(to, 0);
                } else if (component[to] == none) {
                    low[rule] = std::min(low[rule], number[to]);
                }
                continue;
            }
            if (low[rule] == number[rule]) {
                size_t member = none;
                do {
                    member = open.back();
                    open.pop_back();
                    component[member] = rule;
                } while (member != rule);
            }
            path.pop_back();
            if (!path.empty()) {
                low[path.back().first] = std::min(low[path.back().first], low[rule]);
            }
        }
    }
    return component;
}

void check_recursion(const grammar_rules & parsed) {
    const auto & rules = parsed.rules;
    const char * hint = "let the rule begin with something else: `list ::= item (\",\" item)*` instead of `list ::= list \",\" item | item`";
    const auto refuse_rule = [&](size_t rule) {
        throw failure(PYLLM_INVALID_ARGUMENT, format("the grammar is left-recursive: rule `%s` can begin with itself", parsed.names[rule].c_str()), hint);
    };
    const graph all = beginnings(rules, closure(rules, false));
    const auto  component = components(all);
    for (size_t r = 0; r < rules.size(); ++r) {
        for (const edge & e : all[r]) {
            if (e.grows && component[r] == component[e.to]) {
                refuse_rule(r);
            }
        }
    }
    // What upstream's own search does, which knows only rules with an empty alternative as possibly empty.
    std::vector<bool> empty(rules.size());
    for (size_t r = 0; r < rules.size(); ++r) {
        for (size_t i = 0; i < rules[r].size(); ++i) {
            empty[r] = empty[r] || (ends(rules[r][i]) && (i == 0 || ends(rules[r][i - 1])));
        }
    }
    const graph searched = beginnings(rules, empty);
    enum { fresh, on_path, done };
    std::vector<int>      state(rules.size(), fresh);
    std::vector<uint64_t> depth(rules.size(), 1);
    std::vector<uint64_t> visits(rules.size(), 1);
    std::vector<std::pair<size_t, size_t>> path;
    uint64_t total = 0;
    for (size_t first = 0; first < rules.size(); ++first) {
        if (state[first] == fresh) {
            state[first] = on_path;
            path.emplace_back(first, 0);
        }
        while (!path.empty()) {
            const size_t rule = path.back().first;
            if (path.back().second < searched[rule].size()) {
                const size_t to = searched[rule][path.back().second].to;
                if (state[to] == on_path) {
                    refuse_rule(to);
                }
                if (state[to] == fresh) {
                    state[to] = on_path;
                    path.emplace_back(to, 0);
                    continue;
                }
                depth[rule]  = std::max(depth[rule], depth[to] + 1);
                visits[rule] = std::min(visits[rule] + visits[to], max_visits + 1);
                path.back().second += 1;
                continue;
            }
            state[rule] = done;
            path.pop_back();
        }
        total += visits[first];
        if (depth[first] > max_depth || total > max_visits) {
            throw failure(PYLLM_INVALID_ARGUMENT,
                          depth[first] > max_depth ? format("more than %d rules begin with each other, from rule `%s` on", (int) max_depth, parsed.names[first].c_str())
                                                   : format("the rules begin with each other in more than %d ways", (int) max_visits),
                          "write the grammar with fewer rules that begin with rules");
        }
    }
}

} // namespace

bool grammar_rules::can_end() const { return closure(rules, true)[root]; }

grammar_rules parse_grammar(const llama_vocab * vocab, const std::string & text) {
    require(text.size() <= max_text, PYLLM_INVALID_ARGUMENT, format("the grammar has %zu bytes, the limit is %zu", text.size(), max_text), "split the task, or shorten the grammar");
    text_check(text).run();
    llama_grammar_parser parser(vocab);
    const char * const begin = text.c_str();
    const char * at = begin;
    const auto skip = [&] {
        while (std::isspace((unsigned char) *at) != 0 || *at == '#') {
            if (*at == '#') {
                at += std::strcspn(at, "\r\n");
            } else {
                at += 1;
            }
        }
    };
    for (skip(); *at != '\0'; skip()) {
        try {
            at = parser.parse_rule(at);
        } catch (const std::out_of_range &) {
            refuse(text, (size_t) (at - begin), "a number of this rule is too large");
        } catch (const std::exception & e) {
            // Upstream's messages end with the rest of the text; its length is the place.
            std::string why = e.what();
            if (vocab == nullptr && why.compare(0, 8, "no vocab") == 0) {
                why.replace(0, why.find(" at "), "without a model, a token cannot be named by its text");
            }
            const size_t      cut = why.find(" at ");
            const std::string rest = cut == std::string::npos ? "" : why.substr(cut + 4);
            if (cut != std::string::npos && rest.size() <= text.size() && text.compare(text.size() - rest.size(), rest.size(), rest) == 0) {
                refuse(text, text.size() - rest.size(), why.substr(0, cut) + (rest.empty() ? ", but the text ends" : format(", found `%.20s`", rest.substr(0, rest.find('\n')).c_str())));
            }
            refuse(text, (size_t) (at - begin), "in this rule: " + why.substr(0, 200));
        }
    }
    grammar_rules parsed;
    parsed.rules = parser.rules;
    parsed.names.resize(parser.rules.size());
    for (const auto & symbol : parser.symbol_ids) {
        const std::string name = symbol.first.substr(0, symbol.first.find('_'));
        require(symbol.second < parsed.rules.size() && !parsed.rules[symbol.second].empty(), PYLLM_INVALID_ARGUMENT,
                format("the grammar does not parse: rule `%s` is used, but not defined", name.c_str()), gbnf_hint);
        parsed.names[symbol.second] = name;
    }
    const auto root = parser.symbol_ids.find("root");
    require(root != parser.symbol_ids.end(), PYLLM_INVALID_ARGUMENT, parsed.rules.empty() ? "the grammar is empty" : "the grammar has no rule `root`", gbnf_hint);
    parsed.root = root->second;
    check_recursion(parsed);
    return parsed;
}

} // namespace pyllm
