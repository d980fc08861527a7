// JSON that is nested deeper than any request needs: upstream copies it, and converts schemas, by recursion.
#pragma once

#include <string>

namespace pyllm::server {

inline constexpr int max_body_depth = 256; // of brackets in each other

inline bool too_deep(const std::string & json) {
    int  depth     = 0;
    bool in_string = false;
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_body_depth) {
                return true;
            }
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
    return false;
}

// R is httplib's response.
template <typename R> void refuse_depth(R & response) {
    response.status = 400;
    response.set_content("{\"error\":{\"code\":400,\"message\":\"the body has more than " + std::to_string(max_body_depth) +
                             " brackets in each other\",\"type\":\"invalid_request_error\"}}",
                         "application/json; charset=utf-8");
}

} // namespace pyllm::server
