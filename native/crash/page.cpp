#include "crash/page.h"

#include <cerrno>

#include <unistd.h>

namespace pyllm::crash {

void Page::flush() {
    for (size_t done = 0; done < n_;) {
        const ssize_t n = write(fd_, text_ + done, n_ - done);
        if (n < 0 && errno != EINTR) {
            break; // a full disk: what fits is there, and nobody is left to be told
        }
        done += n > 0 ? (size_t) n : 0;
    }
    n_ = 0;
}

void Page::put(char c) {
    if (n_ == sizeof(text_)) {
        flush();
    }
    text_[n_++] = c;
}

Page & Page::operator<<(const char * text) {
    for (; text != nullptr && *text != '\0'; ++text) {
        put(*text);
    }
    return *this;
}

Page & Page::integer(bool negative, uint64_t magnitude, int digits) {
    char reversed[20];
    int  n = 0;
    do {
        reversed[n++] = (char) ('0' + magnitude % 10);
        magnitude /= 10;
    } while (magnitude != 0 || n < digits);
    if (negative) {
        put('-');
    }
    while (n > 0) {
        put(reversed[--n]);
    }
    return *this;
}

Page & Page::hex(uint64_t number) {
    int shift = 60;
    while (shift > 0 && (number >> shift) == 0) {
        shift -= 4;
    }
    *this << "0x";
    for (; shift >= 0; shift -= 4) {
        put("0123456789abcdef"[number >> shift & 15]);
    }
    return *this;
}

} // namespace pyllm::crash
