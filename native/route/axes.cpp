#include "route/axes.h"

#include "route/route.h"

#include <charconv>

namespace pyllm::route {

static constexpr std::string_view kv_types[] = { "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl" };

static const AxisInfo axes[n_axes] = {
    { "vendor", Kind::word, "the device's vendor", { "nvidia", "amd" } },
    { "arch", Kind::number, "the device's architecture", {} },
    { "matrix", Kind::word, "the device's matrix units", { "none", "volta", "turing", "ampere", "mfma", "wmma" } },
    { "fast_fp16", Kind::flag, "fast f16 arithmetic", {} },
    { "smem", Kind::number, "shared memory of a block, bytes", {} },
    { "head", Kind::head, "head dims K/V", {} },
    { "gqa", Kind::number, "query heads per KV head", {} },
    { "n_q", Kind::number, "query rows", {} },
    { "n_kv", Kind::number, "KV rows", {} },
    { "streams", Kind::number, "streams", {} },
    { "kv", Kind::kv, "K/V types", {} },
    { "quantised", Kind::flag, "quantised K or V", {} },
    { "mask", Kind::word, "the mask", { "none", "stream", "repeat", "head" } },
    { "alibi", Kind::flag, "ALiBi", {} },
    { "softcap", Kind::flag, "a logit softcap", {} },
    { "sinks", Kind::flag, "attention sinks", {} },
    { "align", Kind::number, "alignment of Q, K and V in bytes", {} },
    { "mask_align", Kind::number, "alignment of the mask in bytes", {} },
    { "view", Kind::flag, "V being a view of K", {} },
    { "convertible", Kind::flag, "K and V convertible to f16 as they lie", {} },
    { "rows", Kind::flag, "rows that are contiguous", {} },
    { "wide", Kind::number, "width of offsets (0: below 2 GiB, 1: KV rows beyond, 2: heads or rows of Q beyond)", {} },
    { "sparsity", Kind::number, "KV rows per row that a query may see", {} },
};

const AxisInfo & axis_info(int axis) {
    return axes[axis];
}

int axis_from_name(std::string_view name) {
    for (int axis = 0; axis < n_axes; ++axis) {
        if (name == axes[axis].name) {
            return axis;
        }
    }
    return -1;
}

int kv_type(std::string_view name) {
    for (int type = 0; type < (int) std::size(kv_types); ++type) {
        if (name == kv_types[type]) {
            return type;
        }
    }
    return -1;
}

static bool number(std::string_view text, int32_t & value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}

bool encode(int axis, std::string_view text, int32_t & value) {
    const AxisInfo & info = axes[axis];
    if (info.kind == Kind::word) {
        value = 0;
        for (const std::string_view word : info.words) {
            if (word == text) {
                return true;
            }
            ++value;
        }
        return false;
    }
    if (info.kind == Kind::number || info.kind == Kind::flag) {
        return number(text, value);
    }
    const size_t slash = text.find('/');
    if (slash == std::string_view::npos) {
        return false;
    }
    const std::string_view left = text.substr(0, slash), right = text.substr(slash + 1);
    if (info.kind == Kind::kv) {
        value = kv_type(left) << 8 | kv_type(right);
        return kv_type(left) >= 0 && kv_type(right) >= 0;
    }
    int32_t d_k = 0, d_v = 0;
    if (!number(left, d_k) || !number(right, d_v)) {
        return false;
    }
    value = d_k << 16 | d_v;
    return true;
}

std::string decode(int axis, int32_t value) {
    const AxisInfo & info = axes[axis];
    switch (info.kind) {
        case Kind::word: return value >= 0 && value < (int32_t) info.words.size() ? std::string(info.words.begin()[value]) : std::to_string(value);
        case Kind::flag: return value ? "yes" : "no";
        case Kind::head: return std::to_string(value >> 16) + "/" + std::to_string(value & 0xFFFF);
        case Kind::kv: {
            const size_t k = value >> 8 & 0xFF, v = value & 0xFF;
            return k < std::size(kv_types) && v < std::size(kv_types) ? std::string(kv_types[k]) + "/" + std::string(kv_types[v]) : std::to_string(value);
        }
        case Kind::number: break;
    }
    return std::to_string(value);
}

}  // namespace pyllm::route
