#include "state/layout.h"

#include "hash/xxhash/xxhash.h"
#include "nlohmann/json.hpp"

#include <algorithm>
#include <cstring>
#include <set>

namespace pyllm::state {

namespace {

// A byte above 127 and line ends of both kinds: what a transfer as text would damage is at the front.
constexpr char MAGIC[9]     = "\x89pyllm\r\n";
constexpr char END_MAGIC[9] = "pyllmend";

void require(bool ok, const std::string & problem) {
    if (!ok) {
        throw std::invalid_argument(problem);
    }
}

void put(std::string & out, uint64_t value, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        out.push_back((char) (value >> (8 * i) & 0xff));
    }
}

uint64_t get(const uint8_t * bytes, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) {
        value |= (uint64_t) bytes[i] << (8 * i);
    }
    return value;
}

// What people give by mistake.
std::string kind(const uint8_t * bytes, size_t size) {
    const std::string text((const char *) bytes, size);
    if (text.rfind("GGUF", 0) == 0) {
        return "it is a GGUF file";
    }
    // upstream's own files, which hold no drafter and no checksum
    if (text.rfind("qsgg", 0) == 0 || text.rfind("nsgg", 0) == 0) {
        return "it is a state file of llama.cpp";
    }
    return "it does not start with that format's mark";
}

} // namespace

uint64_t checksum(const void * data, size_t size) { return XXH3_64bits(data, size); }

std::string name_problem(const std::string & name) {
    if (name.empty() || name.size() > NAME_SIZE) {
        return "has " + std::to_string(name.size()) + " characters, not 1 to " + std::to_string(NAME_SIZE);
    }
    for (const char c : name) {
        if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') {
            return "holds something else than letters, digits, `.`, `_` and `-`";
        }
    }
    return "";
}

std::string header_text(const facts & header) {
    nlohmann::ordered_json object = nlohmann::ordered_json::object();
    for (const auto & [key, value] : header) {
        require(!key.empty(), "a fact has no name");
        require(key.find('\0') == std::string::npos && value.find('\0') == std::string::npos, "the fact `" + key + "` holds a zero character");
        require(!object.contains(key), "the fact `" + key + "` is given twice");
        object[key] = value;
    }
    try {
        std::string text = object.dump();
        require(text.size() <= MAX_HEADER, "the facts take " + std::to_string(text.size()) + " bytes, the limit is " + std::to_string(MAX_HEADER));
        return text;
    } catch (const nlohmann::json::exception &) {
        throw std::invalid_argument("a fact is not UTF-8");
    }
}

facts read_header(const std::string & text) {
    const auto object = nlohmann::ordered_json::parse(text, nullptr, false);
    require(object.is_object(), "its header is no JSON object");
    facts header;
    for (const auto & [key, value] : object.items()) {
        require(value.is_string(), "its header's `" + key + "` is no text");
        header.emplace_back(key, value.get<std::string>());
        require(!key.empty() && key.find('\0') == std::string::npos && header.back().second.find('\0') == std::string::npos,
                "its header has a fact without a name, or with a zero character");
    }
    return header;
}

std::string preamble_bytes(preamble & front) {
    std::string out(MAGIC, 8);
    put(out, front.version, 4);
    put(out, front.n_sections, 4);
    put(out, front.file_size, 8);
    put(out, front.header_size, 8);
    put(out, front.header_checksum, 8);
    put(out, front.table_checksum, 8);
    put(out, 0, 8);
    front.checksum = checksum(out.data(), out.size());
    put(out, front.checksum, 8);
    return out;
}

preamble read_preamble(const uint8_t * bytes, size_t size) {
    require(size > 0, "it is empty");
    require(std::memcmp(bytes, MAGIC, std::min<size_t>(size, 8)) == 0, "it is no checkpoint file of pyllm: " + kind(bytes, std::min<size_t>(size, 8)));
    require(size >= PREAMBLE_SIZE, "it is cut off after " + std::to_string(size) + " bytes");
    preamble front;
    front.version = (uint32_t) get(bytes + 8, 4);
    if (front.version > VERSION) {
        throw newer_format("it has format " + std::to_string(front.version) + ", this build reads up to " + std::to_string(VERSION));
    }
    front.n_sections      = (uint32_t) get(bytes + 12, 4);
    front.file_size       = get(bytes + 16, 8);
    front.header_size     = get(bytes + 24, 8);
    front.header_checksum = get(bytes + 32, 8);
    front.table_checksum  = get(bytes + 40, 8);
    front.checksum        = get(bytes + 56, 8);
    require(front.checksum == checksum(bytes, 56), "the checksum of its first bytes differs");
    require(front.version > 0 && get(bytes + 48, 8) == 0, "its first bytes are none that pyllm writes");
    return front;
}

std::string table_bytes(const std::vector<entry> & table) {
    std::string out;
    for (const entry & section : table) {
        out += section.name + std::string(NAME_SIZE - section.name.size(), '\0');
        put(out, section.offset, 8);
        put(out, section.size, 8);
        put(out, section.checksum, 8);
        put(out, 0, 8);
    }
    return out;
}

std::vector<entry> read_table(const std::vector<uint8_t> & bytes, const preamble & front) {
    std::vector<entry>    table;
    std::set<std::string> names;
    uint64_t              offset = aligned(PREAMBLE_SIZE + front.header_size) + bytes.size();
    for (size_t i = 0; i < bytes.size() / ENTRY_SIZE; ++i) {
        const uint8_t * at = bytes.data() + i * ENTRY_SIZE;
        entry           section;
        section.name     = std::string((const char *) at, strnlen((const char *) at, NAME_SIZE));
        section.offset   = get(at + NAME_SIZE, 8);
        section.size     = get(at + NAME_SIZE + 8, 8);
        section.checksum = get(at + NAME_SIZE + 16, 8);
        const std::string which = "section " + std::to_string(i);
        require(name_problem(section.name).empty(), "the name of " + which + " " + name_problem(section.name));
        require(std::all_of(at + section.name.size(), at + NAME_SIZE, [](uint8_t c) { return c == 0; }) && get(at + NAME_SIZE + 24, 8) == 0,
                which + " has bytes that are none of pyllm's");
        require(names.insert(section.name).second, "it has two sections `" + section.name + "`");
        require(section.offset == offset, which + " (`" + section.name + "`) starts at byte " + std::to_string(section.offset) + " and not at " + std::to_string(offset));
        require(section.size <= front.file_size - offset, which + " (`" + section.name + "`) has " + std::to_string(section.size) + " bytes, more than the file");
        offset += aligned(section.size);
        require(offset <= front.file_size, which + " (`" + section.name + "`) ends outside of the file");
        table.push_back(section);
    }
    require(offset + END_SIZE == front.file_size, "its sections end at byte " + std::to_string(offset) + ", which leaves no room for the end mark, or too much");
    return table;
}

std::string end_bytes(const preamble & front) {
    std::string out(END_MAGIC, 8);
    put(out, front.checksum, 8);
    return out;
}

} // namespace pyllm::state
