// A short number for settings that have to be equal: FNV-1a over their bytes. Not a checksum against tampering.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyllm {

class fingerprint {
public:
    template <typename T> void add(const T & value) { add(&value, sizeof(value)); }

    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            hash = (hash ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3u;
        }
    }

    uint64_t value() const { return hash; }

private:
    uint64_t hash = 0xcbf29ce484222325u;
};

} // namespace pyllm
