// Names and words of the axes, in the order of pyllm/routes/axes.py; tests/routes/test_native.py holds both sides together.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace pyllm::route {

enum class Kind : uint8_t { word, number, flag, head, kv };

struct AxisInfo {
    const char *                            name;
    Kind                                    kind;
    const char *                            phrase;
    std::initializer_list<std::string_view> words;
};

const AxisInfo & axis_info(int axis);
int              axis_from_name(std::string_view name);  // -1 if unknown
// False if the text is no value of the axis.
bool        encode(int axis, std::string_view text, int32_t & value);
std::string decode(int axis, int32_t value);

// Index of a KV cache type's name in the axis `kv`; -1 if it is none.
int kv_type(std::string_view name);

}  // namespace pyllm::route
