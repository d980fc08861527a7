#pragma once

// A file that takes another one's place all at once.
//
// It is written under a name of its own in the same folder and renamed when all of it is on the disk. Whatever happens before that leaves the old file
// as it was. The writer holds a lock on the new file, so that the next writer of the same path can tell what a killed process has left
// behind, which it removes, from what another one is writing now.

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>

namespace pyllm::state {

class replacement {
public:
    explicit replacement(const std::string & path); // throws pyllm::failure, as all members do
    ~replacement();                                 // removes what was not committed
    replacement(const replacement &) = delete;
    replacement & operator=(const replacement &) = delete;

    void write(const void * data, size_t size);
    void commit();

private:
    // Over the limit on a file's size (ulimit -f) a write does not only fail: a signal ends the process, which this holds off.
    class no_size_signal {
    public:
        no_size_signal();
        ~no_size_signal();

    private:
        sigset_t before;
        bool     was_pending;
    };

    void create();
    void remove_stale() const;
    [[noreturn]] void fail(const char * what, int error) const;
    std::string limit(int error) const;

    no_size_signal signal;
    std::string    path;      // as the caller gave it, for messages
    std::string    target;    // without symbolic links: a link stays one
    std::string    folder;
    std::string    temporary; // empty when there is none
    int            fd = -1;
    uint64_t       n_written = 0;
};

} // namespace pyllm::state
