// Text to a file descriptor from inside a signal handler: allocates nothing, takes no lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pyllm::crash {

class Page {
public:
    explicit Page(int fd) : fd_(fd) {}
    ~Page() { flush(); }
    Page(const Page &)             = delete;
    Page & operator=(const Page &) = delete;

    Page & operator<<(const char * text); // NULL: nothing
    template <typename T, std::enable_if_t<std::is_integral_v<T>, int> = 0> Page & operator<<(T number) {
        return number < 0 ? integer(true, 0 - (uint64_t) number, 1) : integer(false, (uint64_t) number, 1);
    }
    // At least this many digits, with zeros in front.
    Page & padded(uint64_t number, int digits) { return integer(false, number, digits); }
    Page & hex(uint64_t number);

    void flush();

private:
    Page & integer(bool negative, uint64_t magnitude, int digits);
    void   put(char c);

    int    fd_;
    size_t n_ = 0;
    char   text_[512]; // small: the handler may run on a signal stack that somebody else made
};

} // namespace pyllm::crash
