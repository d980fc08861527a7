#include "state/file.h"

#include "core/error.h"
#include "state/replacement.h"

#include "hash/xxhash/xxhash.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

namespace pyllm::state {

namespace {

constexpr size_t CHUNK = 4 * 1024 * 1024;

void pad(replacement & out, uint64_t size) {
    static const char zeros[ALIGNMENT] = {};
    out.write(zeros, (size_t) (aligned(size) - size));
}

} // namespace

void write(const std::string & path, const facts & header, const std::vector<section> & sections) {
    preamble           front;
    std::string        text;
    std::vector<entry> table;
    require(sections.size() <= MAX_SECTIONS, PYLLM_INVALID_ARGUMENT,
            std::to_string(sections.size()) + " sections are more than the " + std::to_string(MAX_SECTIONS) + " of a file");
    try {
        text = header_text(header);
    } catch (const std::invalid_argument & e) {
        throw failure(PYLLM_INVALID_ARGUMENT, std::string("what `") + path + "` is to say cannot be written: " + e.what());
    }
    std::set<std::string> names;
    uint64_t              offset = aligned(PREAMBLE_SIZE + text.size()) + sections.size() * ENTRY_SIZE;
    for (const section & one : sections) {
        const std::string problem = name_problem(one.name);
        require(problem.empty(), PYLLM_INVALID_ARGUMENT, "the section name `" + one.name + "` " + problem);
        require(names.insert(one.name).second, PYLLM_INVALID_ARGUMENT, "two sections are named `" + one.name + "`");
        require(one.data != nullptr || one.size == 0, PYLLM_INVALID_ARGUMENT, "section `" + one.name + "` has no data");
        table.push_back({ one.name, offset, one.size, checksum(one.data, one.size) });
        offset += aligned(one.size);
    }
    const std::string list = table_bytes(table);
    front.n_sections       = (uint32_t) sections.size();
    front.file_size        = offset + END_SIZE;
    front.header_size      = text.size();
    front.header_checksum  = checksum(text.data(), text.size());
    front.table_checksum   = checksum(list.data(), list.size());
    const std::string first = preamble_bytes(front);
    const std::string last  = end_bytes(front);

    replacement out(path);
    out.write(first.data(), first.size());
    out.write(text.data(), text.size());
    pad(out, first.size() + text.size());
    out.write(list.data(), list.size());
    for (const section & one : sections) {
        out.write(one.data, one.size);
        pad(out, one.size);
    }
    out.write(last.data(), last.size());
    out.commit();
}

reader::reader(const std::string & path) : name(path) {
    // No waiting for the other end of a pipe.
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        const int error = errno;
        throw failure(error == ENOENT || error == ENOTDIR ? PYLLM_NOT_FOUND : PYLLM_STATE, "`" + path + "` cannot be opened: " + std::strerror(error),
                      error == EACCES ? "check its permissions" : "give the path of a checkpoint file");
    }
    try {
        struct stat st;
        require(::fstat(fd, &st) == 0 && S_ISREG(st.st_mode), PYLLM_STATE, "`" + path + "` is no regular file", "give the path of a checkpoint file");
        const uint64_t size = (uint64_t) st.st_size;

        uint8_t      bytes[PREAMBLE_SIZE] = {};
        const size_t n = (size_t) std::min<uint64_t>(size, sizeof(bytes));
        load(0, bytes, n);
        front = read_preamble(bytes, n);
        if (front.file_size != size) {
            damaged("it has " + std::to_string(size) + " bytes of " + std::to_string(front.file_size));
        }
        // From here on every number is compared with the size of the file before it is used.
        if (front.header_size > MAX_HEADER || front.n_sections > MAX_SECTIONS ||
            aligned(PREAMBLE_SIZE + front.header_size) + front.n_sections * ENTRY_SIZE + END_SIZE > size) {
            damaged("a header of " + std::to_string(front.header_size) + " bytes and " + std::to_string(front.n_sections) +
                    " sections have no place in its " + std::to_string(size) + " bytes");
        }

        std::string text((size_t) front.header_size, '\0');
        load(PREAMBLE_SIZE, text.data(), text.size());
        if (checksum(text.data(), text.size()) != front.header_checksum) {
            damaged("the checksum of its header differs");
        }
        said = read_header(text);

        const uint64_t       begin = aligned(PREAMBLE_SIZE + front.header_size);
        std::vector<uint8_t> list((size_t) front.n_sections * ENTRY_SIZE);
        load(begin, list.data(), list.size());
        if (checksum(list.data(), list.size()) != front.table_checksum) {
            damaged("the checksum of its table of sections differs");
        }
        table = read_table(list, front);

        check_zero(PREAMBLE_SIZE + front.header_size, begin);
        for (const entry & one : table) {
            check_zero(one.offset + one.size, one.offset + aligned(one.size));
        }
        char end[END_SIZE];
        load(size - END_SIZE, end, END_SIZE);
        if (std::string(end, END_SIZE) != end_bytes(front)) {
            damaged("its end mark is not there");
        }
    } catch (const newer_format & e) {
        ::close(fd);
        throw failure(PYLLM_STATE, "`" + path + "` cannot be used: " + e.what(), "read it with the version of pyllm that wrote it, or a later one");
    } catch (const std::invalid_argument & e) {
        ::close(fd);
        throw failure(PYLLM_STATE, "`" + path + "` cannot be used: " + e.what(), "use a file that pyllm saved and nobody has changed since");
    } catch (...) {
        ::close(fd);
        throw;
    }
}

reader::~reader() { ::close(fd); }

void reader::damaged(const std::string & what) const {
    throw failure(PYLLM_STATE, "`" + name + "` is damaged: " + what, "it was cut or changed after it was written; use another one");
}

void reader::load(uint64_t offset, void * out, size_t size) const {
    uint8_t * at = static_cast<uint8_t *>(out);
    while (size > 0) {
        const ssize_t n = ::pread(fd, at, std::min<size_t>(size, 1u << 30), (off_t) offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        require(n >= 0, PYLLM_STATE, "`" + name + "` cannot be read at byte " + std::to_string(offset) + ": " + std::strerror(errno), "check the disk");
        if (n == 0) {
            damaged("it ends at byte " + std::to_string(offset) + " since it was opened");
        }
        at += n;
        offset += (uint64_t) n;
        size -= (size_t) n;
    }
}

// Padding, less than ALIGNMENT bytes.
void reader::check_zero(uint64_t begin, uint64_t end) const {
    uint8_t bytes[ALIGNMENT] = {};
    load(begin, bytes, (size_t) (end - begin));
    for (const uint8_t byte : bytes) {
        if (byte != 0) {
            damaged("the bytes between byte " + std::to_string(begin) + " and " + std::to_string(end) + " are not zero");
        }
    }
}

bool reader::has(const std::string & section) const {
    return std::any_of(table.begin(), table.end(), [&](const entry & one) { return one.name == section; });
}

const entry & reader::find(const std::string & section) const {
    std::string known;
    for (const entry & one : table) {
        if (one.name == section) {
            return one;
        }
        known += (known.empty() ? "" : ", ") + one.name;
    }
    throw failure(PYLLM_STATE, "`" + name + "` has no section `" + section + "`", known.empty() ? "it has none" : "it has " + known);
}

std::vector<uint8_t> reader::section(const std::string & section) const {
    const entry &        one = find(section);
    std::vector<uint8_t> bytes((size_t) one.size);
    read(one, bytes.data());
    return bytes;
}

void reader::read(const entry & section, uint8_t * out) const {
    load(section.offset, out, (size_t) section.size);
    if (checksum(out, (size_t) section.size) != section.checksum) {
        damaged("the checksum of section `" + section.name + "` differs");
    }
}

bool reader::whole(const entry & section) const {
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(), XXH3_freeState);
    if (!hash || XXH3_64bits_reset(hash.get()) != XXH_OK) {
        throw std::bad_alloc();
    }
    std::vector<uint8_t> bytes((size_t) std::min<uint64_t>(section.size, CHUNK));
    for (uint64_t done = 0; done < section.size;) {
        const size_t n = (size_t) std::min<uint64_t>(section.size - done, CHUNK);
        load(section.offset + done, bytes.data(), n);
        XXH3_64bits_update(hash.get(), bytes.data(), n);
        done += n;
    }
    return XXH3_64bits_digest(hash.get()) == section.checksum;
}

void reader::verify(const entry & section) const {
    if (!whole(section)) {
        damaged("the checksum of section `" + section.name + "` differs");
    }
}

void reader::verify() const {
    std::string bad;
    for (const entry & one : table) {
        bad += whole(one) ? "" : (bad.empty() ? "`" : ", `") + one.name + "`";
    }
    if (!bad.empty()) {
        damaged("the checksum differs of section " + bad);
    }
}

void check(const std::string & path, const facts & expected, const facts & found) {
    std::string differing;
    for (const auto & [key, wanted] : expected) {
        const std::string & name = key; // a structured binding cannot be captured
        const auto there = std::find_if(found.begin(), found.end(), [&](const auto & fact) { return fact.first == name; });
        if (there == found.end() || there->second != wanted) {
            differing += (differing.empty() ? "" : "; ") + name + " is " + (there == found.end() ? "not said" : "`" + there->second + "`") + ", here it is `" + wanted + "`";
        }
    }
    require(differing.empty(), PYLLM_STATE, "`" + path + "` does not belong here: " + differing,
            "use it with the model, drafter and KV types that it was saved with");
}

} // namespace pyllm::state
