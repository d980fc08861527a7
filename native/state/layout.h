#pragma once

// The bytes of a checkpoint file that say where the others are; pure functions between values and bytes. README.md beside this has the table.

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pyllm::state {

// What the writer says of itself, in its order. Both are UTF-8 without zero characters; keys are distinct and not empty.
using facts = std::vector<std::pair<std::string, std::string>>;

constexpr uint32_t VERSION       = 1;
constexpr size_t   PREAMBLE_SIZE = 64;
constexpr size_t   ENTRY_SIZE    = 64;
constexpr size_t   END_SIZE      = 16;
constexpr size_t   ALIGNMENT     = 64;
constexpr size_t   NAME_SIZE     = 32;
constexpr uint64_t MAX_HEADER    = 16 * 1024 * 1024;
constexpr uint64_t MAX_SECTIONS  = 65536;

struct preamble {
    uint32_t version         = VERSION;
    uint32_t n_sections      = 0;
    uint64_t file_size       = 0;
    uint64_t header_size     = 0; // of the JSON text, without padding
    uint64_t header_checksum = 0;
    uint64_t table_checksum  = 0;
    uint64_t checksum        = 0; // of the preamble's bytes before it; the end mark repeats it
};

struct entry {
    std::string name;
    uint64_t    offset   = 0;
    uint64_t    size     = 0;
    uint64_t    checksum = 0;
};

// XXH3, 64 bits.
uint64_t checksum(const void * data, size_t size);

// The next multiple of ALIGNMENT. For numbers that have been compared with a file's size.
inline uint64_t aligned(uint64_t size) { return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Why a name is none, or nothing.
std::string name_problem(const std::string & name);

struct newer_format : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Each throws std::invalid_argument with what is wrong; the callers know the file.
std::string header_text(const facts & header);
facts       read_header(const std::string & text);
std::string preamble_bytes(preamble & front); // sets its checksum
// Throws newer_format before it looks at anything that a later format may have moved.
preamble    read_preamble(const uint8_t * bytes, size_t size);
std::string table_bytes(const std::vector<entry> & table);
// Sections stand one after the other behind the table, aligned, without holes; so none overlaps and none is outside of the file.
std::vector<entry> read_table(const std::vector<uint8_t> & bytes, const preamble & front);
std::string end_bytes(const preamble & front);

} // namespace pyllm::state
