#include "core/json_schema.h"

#include "core/error.h"
#include "core/grammar_text.h"
#include "core/json_pattern.h"
#include "core/library.h"

#include "common.h"
#include "json-schema-to-grammar.h"

#include <cmath>
#include <set>

namespace pyllm {
namespace {

constexpr size_t  max_text    = 1 << 18; // bytes
constexpr int     max_nesting = 64;      // of brackets: upstream converts by recursion
constexpr size_t  max_keys    = 8192;    // upstream's objects are lists
constexpr size_t  max_levels  = 500;     // schemas in each other, over all references: they take 750 kB of stack
constexpr size_t  max_schemas = 20'000;  // once each type of a list of types has its own
constexpr size_t  max_name    = 128;     // bytes of a property's name
constexpr size_t  max_ref     = 512;     // bytes of a reference
constexpr size_t  max_optional = 200;    // properties of one object that may be absent: the rules grow with their square
constexpr int64_t max_count   = 2000;    // the parser's limit of repetitions
constexpr double  max_bound   = 1e15;    // upstream writes out 16 digits

const char * const drop_hint = "leave the keyword out and check the answer yourself";

[[noreturn]] void refuse(const std::string & path, const std::string & why, const std::string & hint = "change the schema there") { refuse_schema(path, why, hint); }

void check_text(const std::string & text) {
    require(text.size() <= max_text, PYLLM_INVALID_ARGUMENT, format("the JSON schema has %zu bytes, the limit is %zu", text.size(), max_text), "shorten it");
    int    nesting = 0;
    size_t keys    = 0;
    bool   quoted  = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            i += c == '\\' ? 1 : 0;
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            nesting += 1;
            require(nesting <= max_nesting, PYLLM_INVALID_ARGUMENT, format("the JSON schema has more than %d brackets in each other", max_nesting), "use $defs and $ref");
        } else if (c == '}' || c == ']') {
            nesting -= 1;
        } else if (c == ':') {
            keys += 1;
            require(keys <= max_keys, PYLLM_INVALID_ARGUMENT, format("the JSON schema has more than %zu keys", max_keys), "shorten it");
        }
    }
}

struct extent {
    size_t levels  = 1;
    size_t schemas = 1;

    void hold(const extent & child) {
        levels = std::max(levels, child.levels + 1);
        schemas += child.schemas;
    }
};

// Walks over the schemas as upstream's builder does.
class schema_check {
public:
    explicit schema_check(const common_json & root) : root(root) {}

    void run() {
        extent total = node(root, "#");
        while (!todo.empty()) {
            const std::string ref = todo.back();
            todo.pop_back();
            const extent target = node(resolve(ref, ref), ref);
            total.levels += target.levels;
            total.schemas += target.schemas;
        }
        if (total.levels > max_levels || total.schemas > max_schemas) {
            refuse("#", format("%zu schemas, %zu levels deep, are more than %zu or deeper than %zu", total.schemas, total.levels, max_schemas, max_levels), "split it");
        }
    }

private:
    const common_json &      root;
    std::set<std::string>    seen; // references
    std::vector<std::string> todo;

    static bool has(const common_json & schema, std::initializer_list<const char *> keys, std::string * which = nullptr) {
        for (const char * key : keys) {
            if (schema.contains(key)) {
                if (which != nullptr) {
                    *which = key;
                }
                return true;
            }
        }
        return false;
    }

    const common_json & resolve(const std::string & ref, const std::string & path) const {
        if (ref.compare(0, 2, "#/") != 0 || ref.size() > max_ref) {
            refuse(path, format("$ref `%.60s` is not supported: only `#/…` in the same document, of at most %zu bytes, is", ref.c_str(), max_ref));
        }
        const common_json * target = &root;
        const auto parts = string_split(ref.substr(2), "/");
        for (const std::string & part : parts) {
            if (target->is_object() && target->contains(part)) {
                target = &target->at(part);
            } else if (target->is_array() && part.size() < 6 && !part.empty() && part.find_first_not_of("0123456789") == std::string::npos && std::stoul(part) < target->size()) {
                target = &target->at((size_t) std::stoul(part));
            } else {
                refuse(path, format("$ref `%s` leads nowhere: there is no `%s`", ref.c_str(), part.c_str()), "define it under $defs");
            }
        }
        return *target;
    }

    // Past references that are nothing but references.
    const common_json & follow(const common_json & schema, const std::string & path) const {
        std::set<std::string> passed;
        const common_json * at = &schema;
        while (at->is_object() && at->contains("$ref")) {
            if (!at->at("$ref").is_string()) {
                refuse(path, "$ref is not a string");
            }
            const std::string ref = at->at("$ref").get<std::string>();
            if (!passed.insert(ref).second) {
                refuse(path, format("$ref `%s` refers to nothing but itself", ref.c_str()), "let it end in a schema");
            }
            at = &resolve(ref, path);
        }
        if (!at->is_object()) {
            refuse(path, "a schema has to be an object", "write {} for any value");
        }
        return *at;
    }

    static void unsupported(const common_json & schema, const std::string & path) {
        for (const char * key : { "not", "if", "then", "else", "patternProperties", "propertyNames", "minProperties", "maxProperties", "contains", "minContains", "maxContains",
                                  "multipleOf", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef" }) {
            if (schema.contains(key)) {
                refuse(path, format("a grammar cannot enforce `%s`", key), drop_hint);
            }
        }
        for (const char * key : { "uniqueItems", "unevaluatedProperties", "unevaluatedItems" }) {
            if (schema.contains(key) && schema.at(key) != false) {
                refuse(path, format("a grammar cannot enforce `%s`", key), drop_hint);
            }
        }
    }

    // Keywords that upstream ignores beside `what`.
    static void alone(const common_json & schema, const std::string & path, const char * what) {
        for (const char * key : { "$ref", "anyOf", "oneOf", "allOf", "const", "enum", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "pattern",
                                  "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum" }) {
            if (std::string(key) != what && schema.contains(key)) {
                refuse(path, format("`%s` beside `%s` cannot be enforced", key, what), "write both into each alternative");
            }
        }
    }

    static std::set<std::string> types(const common_json & schema, const std::string & path) {
        std::set<std::string> names;
        if (schema.contains("type")) {
            const common_json & type = schema.at("type");
            const size_t n = type.is_array() ? type.size() : 1;
            for (size_t i = 0; i < n; ++i) {
                const common_json & name = type.is_array() ? type.at(i) : type;
                const std::string text = name.is_string() ? name.get<std::string>() : "";
                if (text != "object" && text != "array" && text != "string" && text != "integer" && text != "number" && text != "boolean" && text != "null") {
                    refuse(path, format("type %.40s is not known", name.dump_safe().c_str()), "use object, array, string, integer, number, boolean, null, or a list of them");
                }
                if (!names.insert(text).second) {
                    refuse(path, format("type `%s` is named twice", text.c_str()));
                }
            }
            if (names.empty()) {
                refuse(path, "the list of types is empty, so nothing can meet it");
            }
        }
        return names;
    }

    static bool is_type(const common_json & value, const std::set<std::string> & names) {
        const char * name = value.is_null()      ? "null"
                            : value.is_boolean() ? "boolean"
                            : value.is_string()  ? "string"
                            : value.is_array()   ? "array"
                            : value.is_object()  ? "object"
                            : value.is_number_integer() ? "integer" : "number";
        return names.empty() || names.count(name) > 0 || (value.is_number_integer() && names.count("number") > 0);
    }

    extent list(const common_json & schemas, const std::string & path) {
        if (!schemas.is_array() || schemas.empty()) {
            refuse(path, "a list of schemas that is not empty is expected");
        }
        extent size;
        for (size_t i = 0; i < schemas.size(); ++i) {
            size.hold(node(schemas.at(i), path + "/" + std::to_string(i)));
        }
        return size;
    }

    extent node(const common_json & schema, const std::string & path) {
        if (!schema.is_object()) {
            refuse(path, "a schema has to be an object", "write {} for any value");
        }
        unsupported(schema, path);
        if (schema.contains("$ref")) {
            alone(schema, path, "$ref");
            follow(schema, path);
            const std::string ref = schema.at("$ref").get<std::string>();
            if (seen.insert(ref).second) {
                todo.push_back(ref);
            }
            return {};
        }
        const auto names = types(schema, path);
        for (const char * key : { "anyOf", "oneOf" }) {
            if (schema.contains(key)) {
                alone(schema, path, key);
                return list(schema.at(key), path + "/" + key);
            }
        }
        extent size;
        if (schema.contains("const")) {
            alone(schema, path, "const");
            if (!is_type(schema.at("const"), names)) {
                refuse(path, "nothing can meet it: the constant is of another type");
            }
        } else if (schema.contains("enum")) {
            alone(schema, path, "enum");
            const common_json & values = schema.at("enum");
            if (!values.is_array() || values.empty()) {
                refuse(path, "enum has to be a list that is not empty");
            }
            for (size_t i = 0; i < values.size(); ++i) {
                if (!is_type(values.at(i), names)) {
                    refuse(path, format("nothing can be value %zu of the enum: it is of another type", i), "leave it out, or add its type");
                }
            }
        } else {
            size = structure(schema, names, path);
        }
        if (names.size() > 1) {
            size.schemas *= names.size();
            size.levels += 1;
        }
        return size;
    }

    extent structure(const common_json & schema, const std::set<std::string> & names, const std::string & path) {
        const bool properties = schema.contains("properties") || (schema.contains("additionalProperties") && schema.at("additionalProperties") != true);
        const bool any        = names.empty();
        std::string key;
        extent size;
        if (schema.contains("allOf")) {
            if (properties || has(schema, { "items", "prefixItems", "required", "pattern", "minLength", "maxLength", "minimum", "maximum" }, &key) || (!any && names.count("object") + names.count("string") != names.size())) {
                refuse(path, "`allOf` beside other constraints cannot be enforced", "write them into one schema");
            }
            all_of(schema.at("allOf"), path + "/allOf");
            return list(schema.at("allOf"), path + "/allOf");
        }
        if (names.count("object") > 0 || (any && properties)) {
            size = object(schema, path);
        } else if (any && schema.contains("required")) {
            refuse(path, "`required` without a type cannot be enforced", "add \"type\": \"object\" and properties");
        }
        if (names.count("array") > 0 || (any && !properties && has(schema, { "items", "prefixItems" }))) {
            size.hold(array(schema, path));
        } else if (any && has(schema, { "minItems", "maxItems" }, &key)) {
            refuse(path, format("`%s` without a type cannot be enforced", key.c_str()), "add \"type\": \"array\"");
        }
        if (names.count("string") > 0 || any) {
            string(schema, path);
        }
        if (has(schema, { "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum" }, &key)) {
            if (any || names.count("number") > 0) {
                refuse(path, format("a grammar cannot enforce `%s` of numbers that are not integers", key.c_str()), "use \"type\": \"integer\", or check the answer yourself");
            }
            if (names.count("integer") > 0) {
                integer(schema, path);
            }
        }
        return size;
    }

    extent object(const common_json & schema, const std::string & path) {
        extent size;
        std::set<std::string> described;
        if (schema.contains("properties")) {
            const common_json & properties = schema.at("properties");
            if (!properties.is_object()) {
                refuse(path, "properties has to be an object");
            }
            for (const auto & [name, property] : properties.items()) {
                if (name.size() > max_name) {
                    refuse(path, format("a property's name has %zu bytes, the limit is %zu", name.size(), max_name));
                }
                described.insert(name);
                size.hold(node(property, path + "/properties/" + name));
            }
        }
        size_t n_required = 0;
        if (schema.contains("required")) {
            const common_json & required = schema.at("required");
            if (!required.is_array()) {
                refuse(path, "required has to be a list of names");
            }
            for (size_t i = 0; i < required.size(); ++i) {
                if (!required.at(i).is_string() || described.count(required.at(i).get<std::string>()) == 0) {
                    refuse(path, format("required names %.60s, which properties does not describe", required.at(i).dump_safe().c_str()), "describe it under properties; {} stands for any value");
                }
            }
            n_required = required.size();
        }
        if (described.size() > n_required + max_optional) {
            refuse(path, format("%zu properties may be absent, the limit is %zu", described.size() - n_required, max_optional), "name the others in required");
        }
        if (schema.contains("additionalProperties") && !schema.at("additionalProperties").is_boolean()) {
            size.hold(node(schema.at("additionalProperties"), path + "/additionalProperties"));
        }
        return size;
    }

    // Absent: `absent`.
    static int64_t count(const common_json & schema, const char * key, const std::string & path, int64_t absent) {
        if (!schema.contains(key)) {
            return absent;
        }
        const common_json & value = schema.at(key);
        const double number = value.is_number() ? value.get<double>() : -1.0;
        if (!value.is_number_integer() || number < 0 || number > (double) max_count) {
            refuse(path, format("%s %.40s is not an integer in [0, %d]", key, value.dump_safe().c_str(), (int) max_count), "leave it out for no limit");
        }
        return value.get<int64_t>();
    }

    static void range(const common_json & schema, const char * low, const char * high, const std::string & path) {
        const int64_t least = count(schema, low, path, 0);
        const int64_t most  = count(schema, high, path, max_count);
        if (least > most) {
            refuse(path, format("nothing can meet it: %s %d is over %s %d", low, (int) least, high, (int) most));
        }
    }

    extent array(const common_json & schema, const std::string & path) {
        range(schema, "minItems", "maxItems", path);
        if (schema.contains("items") && schema.contains("prefixItems")) {
            refuse(path, "`prefixItems` beside `items` cannot be enforced", "leave one of them out");
        }
        extent size;
        for (const char * key : { "items", "prefixItems" }) {
            if (schema.contains(key) && schema.at(key).is_array()) {
                const int64_t n = (int64_t) schema.at(key).size();
                if (count(schema, "minItems", path, 0) > n || count(schema, "maxItems", path, max_count) < n) {
                    refuse(path, format("`%s` describes %d items; fewer or more cannot be enforced", key, (int) n), "leave minItems and maxItems out");
                }
                if (n > 0) {
                    size.hold(list(schema.at(key), path + "/" + key));
                }
            } else if (schema.contains(key)) {
                size.hold(node(schema.at(key), path + "/" + key));
            }
        }
        return size;
    }

    static void string(const common_json & schema, const std::string & path) {
        range(schema, "minLength", "maxLength", path);
        if (!schema.contains("pattern")) {
            return;
        }
        std::string key;
        if (has(schema, { "minLength", "maxLength" }, &key)) {
            refuse(path, format("`%s` beside `pattern` cannot be enforced", key.c_str()), "write the length into the pattern");
        }
        if (!schema.at("pattern").is_string()) {
            refuse(path, "pattern has to be a string");
        }
        const std::string pattern = schema.at("pattern").get<std::string>();
        check_pattern(pattern, path);
    }

    static int64_t bound(const common_json & schema, const char * key, const std::string & path, bool up, int64_t add, int64_t absent) {
        if (!schema.contains(key)) {
            return absent;
        }
        const common_json & value = schema.at(key);
        const double number = value.is_number() ? value.get<double>() : NAN;
        if (!(std::fabs(number) < max_bound)) {
            refuse(path, format("%s %.40s is not a number between -10^15 and 10^15", key, value.dump_safe().c_str()), "leave it out for no limit");
        }
        return (int64_t) (up ? std::ceil(number) : std::floor(number)) + add;
    }

    static void integer(const common_json & schema, const std::string & path) {
        if ((schema.contains("minimum") && schema.contains("exclusiveMinimum")) || (schema.contains("maximum") && schema.contains("exclusiveMaximum"))) {
            refuse(path, "a limit is given twice, with and without `exclusive`", "leave the wider one out");
        }
        const int64_t low  = std::max(bound(schema, "minimum", path, true, 0, INT64_MIN), bound(schema, "exclusiveMinimum", path, false, 1, INT64_MIN));
        const int64_t high = std::min(bound(schema, "maximum", path, false, 0, INT64_MAX), bound(schema, "exclusiveMaximum", path, true, -1, INT64_MAX));
        if (low > high) {
            refuse(path, format("nothing can meet it: no integer is at least %lld and at most %lld", (long long) low, (long long) high));
        }
    }

    // Upstream's allOf knows objects, and enums whose values it intersects; from anything else it makes an empty object.
    void all_of(const common_json & parts, const std::string & path) {
        if (!parts.is_array() || parts.empty()) {
            refuse(path, "a list of schemas that is not empty is expected");
        }
        size_t enums   = 0;
        size_t objects = 0;
        std::set<std::string> common;
        for (size_t i = 0; i < parts.size(); ++i) {
            const common_json & part = follow(parts.at(i), path);
            if (part.contains("enum") && part.at("enum").is_array()) {
                std::set<std::string> values;
                for (size_t v = 0; v < part.at("enum").size(); ++v) {
                    const std::string value = part.at("enum").at(v).dump_safe();
                    if (enums == 0 || common.count(value) > 0) {
                        values.insert(value);
                    }
                }
                common = std::move(values);
                enums += 1;
            } else if (part.contains("properties") && !has(part, { "allOf", "anyOf", "oneOf", "const" })) {
                objects += 1;
            }
        }
        if (objects != parts.size() && enums != parts.size()) {
            refuse(path, "allOf combines only objects with properties, or only enums", "for one schema alone, write the schema itself");
        }
        if (enums > 0 && common.empty()) {
            refuse(path, "nothing can meet it: the enums have no value in common");
        }
    }
};

} // namespace

std::string grammar_of_schema(const std::string & text) {
    check_text(text);
    common_json schema;
    try {
        schema = common_json::parse(text);
    } catch (const common_json_error & e) {
        throw failure(PYLLM_INVALID_ARGUMENT, std::string("the JSON schema is not JSON: ") + e.what(), "check quotes, commas and brackets");
    }
    std::string gbnf;
    try {
        schema_check(schema).run();
        const abort_is_exception caught;
        gbnf = json_schema_to_grammar(schema, true);
    } catch (const failure &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        throw failure(PYLLM_INVALID_ARGUMENT, std::string("the JSON schema cannot be converted: ") + e.what());
    }
    bool can_end = false;
    try {
        can_end = parse_grammar(nullptr, gbnf).can_end();
    } catch (const failure & e) {
        throw failure(PYLLM_INVALID_ARGUMENT, "the JSON schema makes a grammar that cannot be used: " + e.message, "shorten it, and use letters, digits and _ in names");
    }
    require(can_end, PYLLM_INVALID_ARGUMENT, "the JSON schema cannot be met: a value would have to contain itself without end", "let the reference be optional, or add an alternative that ends");
    return gbnf;
}

} // namespace pyllm
