#include "core/json_pattern.h"

#include "core/error.h"

#include "json-schema-to-grammar.h"

#include <cctype>
#include <cstdlib>

namespace pyllm {
namespace {

// Inside a JSON string a quote ends it, and a backslash or a control character is not itself: a pattern that matches one of them describes
// texts that are no JSON. Upstream translates it all the same.
void check_characters(const std::string & pattern, const std::string & path) {
    bool in_class = false;
    uint32_t before = 0; // in a class: the character before, where a range can begin
    for (size_t i = 0; i < pattern.size();) {
        const char c = pattern[i];
        const bool range = in_class && c == '-' && i + 1 < pattern.size() && pattern[i + 1] != ']' && before != 0;
        i += range ? 1 : 0;
        uint32_t value = (unsigned char) pattern[i];
        size_t   n     = 1;
        if (pattern[i] == '\\' && i + 1 < pattern.size()) {
            const char kind = pattern[i + 1];
            const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
            n     = 2 + digits;
            value = digits > 0 ? (uint32_t) std::strtoul(pattern.substr(i + 2, digits).c_str(), nullptr, 16) : (unsigned char) kind;
            if (digits == 0 && (std::isalnum((unsigned char) kind) != 0 || kind == '\\')) {
                refuse_schema(path, format("the pattern `%.60s` has no grammar: `\\%c` is not supported", pattern.c_str(), kind), "write [0-9] for \\d, [A-Za-z0-9_] for \\w");
            }
        } else if (in_class ? c == ']' : c == '[') {
            in_class = c == '[';
            before   = 0;
            i += 1;
            if (in_class && i < pattern.size() && pattern[i] == '^') {
                refuse_schema(path, format("the pattern `%.60s` has no grammar: [^…] also matches the quote that ends the string", pattern.c_str()), "name what may come, as in [a-z ]");
            }
            continue;
        } else if (c == '.' && !in_class) {
            refuse_schema(path, format("the pattern `%.60s` has no grammar: `.` also matches the quote that ends the string", pattern.c_str()), "name what may come, as in [A-Za-z0-9 ]");
        }
        const uint32_t low = range ? before : value;
        if (low < 0x20 || (low <= '"' && value >= '"') || (low <= '\\' && value >= '\\')) {
            refuse_schema(path, format("the pattern `%.60s` has no grammar: it matches quotes, backslashes or control characters, which JSON writes otherwise", pattern.c_str()), "leave them out of the pattern");
        }
        before = in_class && !range ? value : 0;
        i += n;
    }
}

} // namespace

void refuse_schema(const std::string & path, const std::string & why, const std::string & hint) {
    throw failure(PYLLM_INVALID_ARGUMENT, "the JSON schema at " + path + ": " + why, hint);
}

void check_pattern(const std::string & pattern, const std::string & path) {
    if (pattern.size() < 2 || pattern.front() != '^' || pattern.back() != '$') {
        refuse_schema(path, format("the pattern `%.60s` does not begin with ^ and end with $", pattern.c_str()), "write ^…$; a pattern that may match anywhere has no grammar");
    }
    check_characters(pattern, path);
    common_json probe;
    probe["type"]    = "string";
    probe["pattern"] = pattern;
    // Upstream takes any string instead of a pattern that it cannot translate.
    if (("\n" + json_schema_to_grammar(probe, true)).find("\nroot ::= string\n") != std::string::npos) {
        refuse_schema(path, format("the pattern `%.60s` has no grammar: look-arounds, anchors inside and classes like \\d are not supported", pattern.c_str()), "write [0-9] instead of \\d");
    }
}

} // namespace pyllm
