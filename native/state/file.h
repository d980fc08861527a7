#pragma once

// A saved conversation as one file: facts of who wrote it and with which model, and named sections of bytes. README.md beside this has the layout.
//
// The container does not know what its sections mean. It promises that a file is either whole or refused: every bit of it is covered by a checksum or
// a rule, and no length in it is believed before it was compared with the size of the file. Everything that fails throws pyllm::failure:
// PYLLM_NOT_FOUND for a file or folder that is not there, PYLLM_STATE for one that is damaged, of another kind or newer, PYLLM_LIMIT for one
// that cannot be written, PYLLM_INVALID_ARGUMENT for what no file may hold.

#include "state/layout.h"

#include <cstdint>
#include <string>
#include <vector>

namespace pyllm::state {

// Bytes that somebody else keeps alive until they are written.
struct section {
    std::string     name; // 1 to 32 letters, digits, `.`, `_`, `-`
    const uint8_t * data;
    size_t          size;
};

// Writes a file in place of the one at `path`. At any moment, and after a crash at any moment, the old file or the new one is there, whole. When
// it fails the old one stays and nothing is left behind.
void write(const std::string & path, const facts & header, const std::vector<section> & sections);

// A file, held open: what it says does not change when another one takes its place. Opening checks everything but the sections' own bytes, which
// are checked whenever they are read.
class reader {
public:
    explicit reader(const std::string & path);
    ~reader();
    reader(const reader &) = delete;
    reader & operator=(const reader &) = delete;

    const std::string &        path() const { return name; }
    uint32_t                   version() const { return front.version; }
    uint64_t                   size() const { return front.file_size; }
    const facts &              header() const { return said; }
    const std::vector<entry> & sections() const { return table; }

    bool          has(const std::string & section) const;
    const entry & find(const std::string & section) const; // refuses with the names that there are

    std::vector<uint8_t> section(const std::string & section) const;
    void                 read(const entry & section, uint8_t * out) const; // out has room for section.size bytes
    void                 verify(const entry & section) const;
    void                 verify() const; // all sections; names every damaged one

private:
    void     load(uint64_t offset, void * out, size_t size) const;
    void     check_zero(uint64_t begin, uint64_t end) const;
    bool     whole(const entry & section) const;
    [[noreturn]] void damaged(const std::string & what) const;

    std::string        name;
    int                fd = -1;
    preamble           front;
    facts              said;
    std::vector<entry> table;
};

// Refuses a file whose facts differ from the expected ones, with each differing key and both values. Keys that are not expected are not compared.
void check(const std::string & path, const facts & expected, const facts & found);

} // namespace pyllm::state
