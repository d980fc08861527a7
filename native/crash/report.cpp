#include "crash/report.h"

#include "crash/page.h"
#include "crash/record.h"
#include "crash/stack.h"

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>

#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

namespace pyllm::crash {

namespace {

struct Signal {
    int          number;
    const char * name;
};

constexpr Signal signals[] = { { SIGSEGV, "SIGSEGV" }, { SIGBUS, "SIGBUS" }, { SIGFPE, "SIGFPE" }, { SIGILL, "SIGILL" }, { SIGABRT, "SIGABRT" } };
constexpr int    n_signals = sizeof(signals) / sizeof(signals[0]);

// Of a signal, by its place above.
struct sigaction  before[n_signals];
bool              ours[n_signals];        // our handler was put in, and may be under another
std::atomic<bool> handed_on[n_signals];   // to the one before us
std::terminate_handler terminate_before = nullptr;

std::mutex settings_mutex;
char       folder_text[PATH_MAX];
char       build_text[1024];
char       about_text[8192];

std::atomic_flag  message_taken = ATOMIC_FLAG_INIT;
std::atomic<bool> message_whole{ false };
uint64_t          message_thread;
char              message_text[2048];

// 0, or the thread that writes the report.
std::atomic<uint64_t> writer{ 0 };
std::atomic<bool>     written{ false };
std::atomic<int>      report_file{ -1 };
char                  report_path[PATH_MAX + 64];

template <size_t N> void copy(char (&out)[N], const char * text) {
    static constexpr char cut[] = " …";
    const size_t          n     = strlen(text);
    if (n < N) {
        memcpy(out, text, n + 1);
    } else {
        memcpy(out, text, N - sizeof(cut));
        memcpy(out + N - sizeof(cut), cut, sizeof(cut));
    }
}

// The sections of a report are apart by an empty line, which no text inside of one may hold.
std::string indented(const std::string & text) {
    std::string out;
    for (const char c : text) {
        out += c;
        out += c == '\n' ? "  " : "";
    }
    return out;
}

uint64_t thread_number() {
    return (uint64_t) (uintptr_t) pthread_self();
}

// Civil date of seconds since 1970 (Howard Hinnant's days algorithm); gmtime may take a lock.
struct Date {
    int64_t  year;
    uint64_t month, day, hour, minute, second;

    explicit Date(int64_t time) {
        const int64_t  z   = time / 86400 + 719468;
        const int64_t  era = z / 146097;
        const uint64_t doe = (uint64_t) (z - era * 146097);
        const uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
        const uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        const uint64_t mp  = (5 * doy + 2) / 153;
        day    = doy - (153 * mp + 2) / 5 + 1;
        month  = mp < 10 ? mp + 3 : mp - 9;
        year   = (int64_t) yoe + era * 400 + (month <= 2 ? 1 : 0);
        hour   = (uint64_t) (time % 86400) / 3600;
        minute = (uint64_t) (time % 3600) / 60;
        second = (uint64_t) (time % 60);
    }
};

// Text, number, text, …: into report_path, which holds any folder and the name.
struct Path {
    size_t n = 0;

    Path & operator<<(const char * text) {
        for (; *text != '\0' && n + 1 < sizeof(report_path); ++text) {
            report_path[n++] = *text;
        }
        report_path[n] = '\0';
        return *this;
    }
    Path & number(uint64_t value, int digits) {
        char   text[21] = {};
        char * end      = text + sizeof(text) - 1;
        do {
            *--end = (char) ('0' + value % 10);
            value /= 10;
        } while (value != 0 || text + sizeof(text) - 1 - end < digits);
        return *this << end;
    }
};

const char * signal_name(int number) {
    for (const Signal & one : signals) {
        if (one.number == number) {
            return one.name;
        }
    }
    return "a signal";
}

const char * reason(int error) {
    switch (error) {
        case EACCES: return "no permission";
        case ENOENT: return "no such folder";
        case ENOTDIR: return "it is no folder";
        case EROFS: return "a read-only file system";
        case ENOSPC: return "no space left";
        case EDQUOT: return "the quota is used up";
        case EMFILE: return "too many open files";
        default: return nullptr;
    }
}

// Unwinding asks the dynamic loader. A thread that died inside of it would wait for its own lock: the alarm ends the process then, which
// is better than one that neither works nor ends.
void write_backtrace(int file) {
    struct sigaction standard {};
    struct sigaction alarm_before {};
    standard.sa_handler = SIG_DFL;
    sigaction(SIGALRM, &standard, &alarm_before);
    sigset_t only, mask_before;
    sigemptyset(&only);
    sigaddset(&only, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &only, &mask_before);
    const unsigned left = alarm(10);
    static void *  frames[100];
    backtrace_symbols_fd(frames, backtrace(frames, 100), file);
    alarm(left);
    pthread_sigmask(SIG_SETMASK, &mask_before, nullptr);
    sigaction(SIGALRM, &alarm_before, nullptr);
}

const char * told() {
    return message_whole.load(std::memory_order_acquire) ? message_text : nullptr;
}

// The last that stderr gets, unless a handler of before has something to say.
void tell(int number, int file, int error) {
    Page page(STDERR_FILENO);
    page << "error: this process ends by " << signal_name(number) << (told() != nullptr ? ": " : "") << told() << "\n\nhint: ";
    if (file >= 0) {
        page << "crash report written to " << report_path << ": look through it, then attach it to your issue\n";
        return;
    }
    page << "no crash report: " << report_path << " cannot be written (";
    if (const char * why = reason(error); why != nullptr) {
        page << why;
    } else {
        page << "errno " << error;
    }
    page << "); name a folder that can\n";
}

void write_parts(int file, int number, const siginfo_t * info, const Date & date, int64_t now) {
    Page page(file);
    page << "pyllm crash report 1\ntime: ";
    page.padded((uint64_t) date.year, 4) << "-";
    page.padded(date.month, 2) << "-";
    page.padded(date.day, 2) << "T";
    page.padded(date.hour, 2) << ":";
    page.padded(date.minute, 2) << ":";
    page.padded(date.second, 2) << "Z\n";
    page << "process: " << getpid() << "\nsignal: " << signal_name(number) << " (" << number << "), code " << info->si_code;
    if (info->si_code > 0) {
        page << ", address ";
        page.hex((uint64_t) (uintptr_t) info->si_addr);
    } else if (info->si_pid != 0 && info->si_pid != getpid()) {
        page << ", sent by process " << info->si_pid;
    }
    page << "\nmessage: " << (told() != nullptr ? told() : "none") << (told() != nullptr && message_thread != thread_number() ? " (of another thread)" : "");
    page << "\nbuild: " << build_text << (description()[0] != '\0' ? "; " : "") << description() << "\nabout: " << about_text << "\n\n";
    write_batches(page, now);
    page << "\n";
    write_attention(page, now);
    page << "\n";
    write_log(page, now);
    page << "\nbacktrace:\n";
}

void write_report(int number, const siginfo_t * info) {
    timespec wall{};
    clock_gettime(CLOCK_REALTIME, &wall);
    const int64_t now = clock_ns();
    const Date    date(wall.tv_sec);
    Path          path;
    path << folder_text << "/pyllm-crash-";
    path.number((uint64_t) getpid(), 1) << "-";
    path.number((uint64_t) date.year, 4).number(date.month, 2).number(date.day, 2) << "T";
    path.number(date.hour, 2).number(date.minute, 2).number(date.second, 2) << "Z.txt";
    const int file  = open(report_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const int error = errno;
    report_file     = file;
    if (file >= 0) {
        write_parts(file, number, info, date, now);
    }
    tell(number, file, error);
    if (file >= 0) {
        write_backtrace(file);
        Page(file) << "\nend of report\n";
        report_file = -1;
        close(file);
    }
}

// True once a report is there, or another thread had ten seconds to write it.
void report_once(int number, const siginfo_t * info) {
    uint64_t       who  = 0;
    const uint64_t self = thread_number();
    if (writer.compare_exchange_strong(who, self)) {
        write_report(number, info);
        written = true;
    } else if (who != self) {
        const timespec pause{ 0, 10000000 };
        for (int i = 0; i < 1000 && !written; ++i) {
            nanosleep(&pause, nullptr);
        }
    } else if (const int file = report_file.exchange(-1); file >= 0) {
        Page(file) << "\nend of report: writing it failed by " << signal_name(number) << "\n";
        written = true;
    }
}

void on_signal(int number, siginfo_t * info, void *);

bool is_ours(int number) {
    struct sigaction now {};
    return sigaction(number, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_signal;
}

void on_signal(int number, siginfo_t * info, void *) {
    const int error = errno;
    if (recording()) {
        report_once(number, info);
    }
    for (int i = 0; i < n_signals; ++i) {
        // Not ours any more: another thread that died, too, has handed it on already.
        if (signals[i].number == number && is_ours(number)) {
            struct sigaction standard {};
            standard.sa_handler = SIG_DFL;
            // A second time: the one before has put ours back, and would do so for ever.
            sigaction(number, handed_on[i].exchange(true) ? &standard : &before[i], nullptr);
        }
    }
    // A fault happens again on return, with all that the kernel says about it; what somebody sent has to be sent again.
    if (info->si_code <= 0) {
        raise(number);
    }
    errno = error;
}

[[noreturn]] void on_terminate() {
    try {
        if (std::current_exception()) {
            throw;
        }
        remember("std::terminate was called");
    } catch (const std::exception & e) {
        remember((std::string("uncaught exception: ") + e.what()).c_str());
    } catch (...) {
        remember("uncaught exception of an unknown type");
    }
    if (terminate_before != nullptr) {
        terminate_before();
    }
    abort();
}

} // namespace

void remember(const char * message) {
    if (!recording() || message_taken.test_and_set()) {
        return;
    }
    copy(message_text, message);
    for (size_t n = strlen(message_text); n > 0; --n) {
        if (message_text[n - 1] == '\n') {
            message_text[n - 1] = message_text[n] == '\0' ? '\0' : ' '; // one line
        }
    }
    message_thread = thread_number();
    message_whole.store(true, std::memory_order_release);
}

std::string enable(const std::string & folder, const std::string & build, const std::string & about) {
    struct stat found {};
    char        whole[PATH_MAX];
    if (realpath(folder.c_str(), whole) == nullptr || stat(whole, &found) != 0) {
        return "folder `" + folder + "` for crash reports: " + strerror(errno);
    }
    if (!S_ISDIR(found.st_mode)) {
        return "`" + folder + "` for crash reports is no folder";
    }
    if (access(whole, W_OK | X_OK) != 0) {
        return "folder `" + folder + "` for crash reports cannot be written: " + strerror(errno);
    }
    const std::lock_guard<std::mutex> lock(settings_mutex);
    copy(folder_text, whole);
    copy(build_text, indented(build).c_str());
    copy(about_text, indented(about).c_str());
    void * frame;
    backtrace(&frame, 1); // loads the unwinder now: a signal handler must not
    guard_stack();
    for (int i = 0; i < n_signals; ++i) {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags     = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        if (!ours[i]) {
            ours[i] = sigaction(signals[i].number, &action, &before[i]) == 0;
        }
    }
    if (std::get_terminate() != on_terminate) {
        terminate_before = std::set_terminate(on_terminate);
    }
    recording_on = true;
    return "";
}

void disable() {
    const std::lock_guard<std::mutex> lock(settings_mutex);
    recording_on = false;
    for (int i = 0; i < n_signals; ++i) {
        if (ours[i] && is_ours(signals[i].number)) {
            sigaction(signals[i].number, &before[i], nullptr);
            ours[i] = false;
        }
    }
    if (std::get_terminate() == on_terminate) {
        std::set_terminate(terminate_before);
    }
}

} // namespace pyllm::crash
