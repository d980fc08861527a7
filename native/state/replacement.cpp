#include "state/replacement.h"

#include "core/error.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <random>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace pyllm::state {

namespace {

constexpr size_t LARGEST_WRITE = 1u << 30; // one call takes less than 2 GiB on every system
constexpr int    ATTEMPTS      = 64;

class descriptor {
public:
    explicit descriptor(int fd) : fd(fd) {}
    ~descriptor() {
        if (fd >= 0) {
            ::close(fd);
        }
    }
    descriptor(const descriptor &) = delete;
    descriptor & operator=(const descriptor &) = delete;
    const int fd;
};

struct close_folder {
    void operator()(DIR * folder) const { closedir(folder); }
};

bool pending() {
    sigset_t set;
    return sigpending(&set) == 0 && sigismember(&set, SIGXFSZ) == 1;
}

int sync(int fd) {
#ifdef F_FULLFSYNC
    if (fcntl(fd, F_FULLFSYNC) == 0) {
        return 0;
    }
#endif
    return fsync(fd);
}

std::string way_out(int error) {
    switch (error) {
        case ENOSPC:
        case EDQUOT: return "free some space or write elsewhere; what was there before is unchanged";
        case EFBIG: return "raise the limit on file sizes (ulimit -f) or write elsewhere; what was there before is unchanged";
        case ENOENT:
        case ENOTDIR: return "give a path in a folder that exists";
        case EACCES:
        case EPERM:
        case EROFS: return "give a path in a folder that may be written to";
        case ENAMETOOLONG: return "give a shorter name: a suffix is added while it is written";
        default: return "check the disk; what was there before is unchanged";
    }
}

// The process number in `-PID-RANDOM`; 0 if that is not what it is.
long process_of(const std::string & rest) {
    const size_t dash = rest.find('-');
    if (dash == 0 || dash == std::string::npos || dash > 9 || rest.size() != dash + 1 + 16 ||
        rest.find_first_not_of("0123456789") != dash || rest.find_first_not_of("0123456789abcdef", dash + 1) != std::string::npos) {
        return 0;
    }
    return std::atol(rest.c_str());
}

} // namespace

replacement::no_size_signal::no_size_signal() : was_pending(pending()) {
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &block, &before);
}

replacement::no_size_signal::~no_size_signal() {
    if (!was_pending && pending()) {
        sigset_t set;
        int      number = 0;
        sigemptyset(&set);
        sigaddset(&set, SIGXFSZ);
        sigwait(&set, &number);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

replacement::replacement(const std::string & path) : path(path), target(path) {
    if (std::unique_ptr<char, decltype(&std::free)> real{ realpath(path.c_str(), nullptr), std::free }) {
        target = real.get();
    }
    const size_t slash = target.rfind('/');
    folder = slash == std::string::npos ? "." : slash == 0 ? "/" : target.substr(0, slash);
    require(!path.empty(), PYLLM_INVALID_ARGUMENT, "the path is empty", "give the path of a file");
    struct stat old;
    const bool  there = ::stat(target.c_str(), &old) == 0;
    require(!there || S_ISREG(old.st_mode), PYLLM_INVALID_ARGUMENT, "`" + path + "` is there and is no regular file", "give the path of a file");
    remove_stale();
    create();
    if (there) {
        fchmod(fd, old.st_mode & 0777); // who may read it does not change; where that fails the new file's own mode is as good as any
    }
}

replacement::~replacement() {
    if (fd >= 0) {
        ::close(fd);
    }
    if (!temporary.empty()) {
        ::unlink(temporary.c_str());
    }
}

void replacement::fail(const char * what, int error) const {
    throw failure(error == ENOENT || error == ENOTDIR ? PYLLM_NOT_FOUND : PYLLM_LIMIT,
                  "`" + path + "` cannot be " + what + ": " + std::strerror(error) + limit(error), way_out(error));
}

// How far it came, and how much there may be.
std::string replacement::limit(int error) const {
    struct rlimit  size;
    struct statvfs disk;
    if (error == EFBIG && ::getrlimit(RLIMIT_FSIZE, &size) == 0 && size.rlim_cur != RLIM_INFINITY) {
        return " behind byte " + std::to_string(n_written) + ", the limit is " + std::to_string((uint64_t) size.rlim_cur);
    }
    if (error == ENOSPC && fd >= 0 && ::fstatvfs(fd, &disk) == 0) {
        return " behind byte " + std::to_string(n_written) + ", " + std::to_string((uint64_t) disk.f_bavail * disk.f_frsize) + " bytes are free";
    }
    return "";
}

void replacement::create() {
    std::random_device random;
    for (int attempt = 0; attempt < ATTEMPTS; ++attempt) {
        char suffix[64];
        std::snprintf(suffix, sizeof(suffix), ".tmp-%ld-%08x%08x", (long) getpid(), (unsigned) random(), (unsigned) random());
        const std::string name = target + suffix;
        fd = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && (errno == EEXIST || errno == EINTR)) {
            continue;
        }
        if (fd < 0) {
            fail("written", errno);
        }
        temporary = name;
        // Between its birth and its lock another writer may have taken the file for one that was left behind.
        struct stat now;
        const bool  taken = ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (!taken && ::fstat(fd, &now) == 0 && now.st_nlink > 0) {
            return;
        }
        ::unlink(name.c_str());
        ::close(fd);
        temporary.clear();
        fd = -1;
    }
    fail("written", EEXIST);
}

// A lock that can be had belongs to nobody who lives. Where the file system has no locks, the process in the name has to be gone.
void replacement::remove_stale() const {
    const size_t      slash  = target.rfind('/');
    const std::string prefix = target.substr(slash == std::string::npos ? 0 : slash + 1) + ".tmp-";
    const std::unique_ptr<DIR, close_folder> entries(opendir(folder.c_str()));
    while (const dirent * one = entries ? readdir(entries.get()) : nullptr) {
        const std::string name = one->d_name;
        const long        pid  = name.compare(0, prefix.size(), prefix) == 0 ? process_of(name.substr(prefix.size())) : 0;
        if (pid == 0) {
            continue;
        }
        const std::string full = folder + "/" + name;
        const descriptor  file(::open(full.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
        struct stat       now;
        if (file.fd < 0 || ::fstat(file.fd, &now) != 0 || !S_ISREG(now.st_mode)) {
            continue;
        }
        const int error = ::flock(file.fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
        if (error == 0 || (error != EWOULDBLOCK && ::kill((pid_t) pid, 0) != 0 && errno == ESRCH)) {
            ::unlink(full.c_str());
        }
    }
}

void replacement::write(const void * data, size_t size) {
    const char * at = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t n = ::write(fd, at, std::min(size, LARGEST_WRITE));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            fail("written", n < 0 ? errno : ENOSPC);
        }
        at += n;
        size -= (size_t) n;
        n_written += (uint64_t) n;
    }
}

void replacement::commit() {
    if (sync(fd) != 0) {
        fail("brought onto the disk", errno);
    }
    if (::rename(temporary.c_str(), target.c_str()) != 0) {
        fail("put in place", errno);
    }
    temporary.clear();
    // The name is on the disk when its folder is. File systems that cannot say so, and folders that may not be read, are left to the system.
    const descriptor place(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (place.fd >= 0 && sync(place.fd) != 0 && errno == EIO) {
        fail("brought onto the disk", errno);
    }
}

} // namespace pyllm::state
