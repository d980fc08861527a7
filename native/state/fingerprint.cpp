#include "state/fingerprint.h"

#include "core/error.h"
#include "state/layout.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace pyllm::state {

namespace {

constexpr uint64_t EDGE      = 1024 * 1024;
constexpr uint64_t SAMPLE    = 4096;
constexpr uint64_t N_SAMPLES = 256;

class model_file {
public:
    explicit model_file(const std::string & path) : path(path), fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
        if (fd < 0) {
            refuse(errno == ENOENT || errno == ENOTDIR ? PYLLM_NOT_FOUND : PYLLM_MODEL_FORMAT, std::strerror(errno));
        }
        struct stat st;
        if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
            ::close(fd);
            refuse(PYLLM_MODEL_FORMAT, "it is no regular file");
        }
        size = (uint64_t) st.st_size;
    }
    ~model_file() { ::close(fd); }
    model_file(const model_file &) = delete;
    model_file & operator=(const model_file &) = delete;

    // Of its size and of the samples, in the order of their places.
    uint64_t hash() const {
        std::vector<uint8_t> bytes(8);
        for (size_t i = 0; i < bytes.size(); ++i) {
            bytes[i] = (uint8_t) (size >> (8 * i));
        }
        const uint64_t between = size > 2 * EDGE ? size - 2 * EDGE : 0;
        if (between <= N_SAMPLES * SAMPLE) {
            append(bytes, 0, size);
            return checksum(bytes.data(), bytes.size());
        }
        append(bytes, 0, EDGE);
        for (uint64_t i = 0; i < N_SAMPLES; ++i) {
            // without the product that would overflow: the step first
            const uint64_t room = between - SAMPLE;
            append(bytes, EDGE + room / (N_SAMPLES - 1) * i + room % (N_SAMPLES - 1) * i / (N_SAMPLES - 1), SAMPLE);
        }
        append(bytes, size - EDGE, EDGE);
        return checksum(bytes.data(), bytes.size());
    }

private:
    void append(std::vector<uint8_t> & bytes, uint64_t offset, uint64_t n) const {
        size_t at = bytes.size();
        bytes.resize(at + (size_t) n);
        while (n > 0) {
            const ssize_t got = ::pread(fd, bytes.data() + at, (size_t) n, (off_t) offset);
            if (got < 0 && errno == EINTR) {
                continue;
            }
            if (got <= 0) {
                refuse(PYLLM_MODEL_FORMAT, got < 0 ? std::strerror(errno) : "it became shorter");
            }
            at += (size_t) got;
            offset += (uint64_t) got;
            n -= (uint64_t) got;
        }
    }

    [[noreturn]] void refuse(pyllm_status status, const std::string & why) const {
        throw failure(status, "the model file `" + path + "` cannot be read: " + why, "the file of a loaded model has to stay where it is");
    }

    std::string path;
    int         fd;
    uint64_t    size = 0;
};

// …-00002-of-00003.gguf: all three, in order.
std::vector<std::string> parts(const std::string & path) {
    constexpr size_t LENGTH = sizeof("-00001-of-00003.gguf") - 1;
    if (path.size() > LENGTH) {
        const std::string tail = path.substr(path.size() - LENGTH);
        int number = 0, count = 0, end = 0;
        if (std::sscanf(tail.c_str(), "-%5d-of-%5d.gguf%n", &number, &count, &end) == 2 && end == (int) LENGTH && number >= 1 && count >= number) {
            std::vector<std::string> all;
            for (int i = 1; i <= count; ++i) {
                char name[64];
                std::snprintf(name, sizeof(name), "-%05d-of-%05d.gguf", i, count);
                all.push_back(path.substr(0, path.size() - LENGTH) + name);
            }
            return all;
        }
    }
    return { path };
}

} // namespace

std::string fingerprint(const std::string & path) {
    std::vector<uint64_t> hashes;
    for (const std::string & part : parts(path)) {
        hashes.push_back(model_file(part).hash());
    }
    std::vector<uint8_t> bytes;
    for (const uint64_t hash : hashes) {
        for (int i = 0; i < 8; ++i) {
            bytes.push_back((uint8_t) (hash >> (8 * i)));
        }
    }
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", (unsigned long long) (hashes.size() == 1 ? hashes[0] : checksum(bytes.data(), bytes.size())));
    return text;
}

} // namespace pyllm::state
