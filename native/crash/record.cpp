#include "crash/record.h"

#include "crash/page.h"
#include "crash/ring.h"
#include "route/control.h"

#include <cstring>
#include <ctime>

namespace pyllm::crash {

std::atomic<bool> recording_on{ false };

int64_t clock_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

namespace {

template <size_t N> void copy(char (&out)[N], const char * text) {
    const size_t n = strnlen(text, N - 1);
    memcpy(out, text, n);
    out[n] = '\0';
}

struct Tensor {
    const char * type = nullptr; // nullptr: absent
    int64_t      ne[GGML_MAX_DIMS] = {};
    uint64_t     nb[GGML_MAX_DIMS] = {};

    void describe(const ggml_tensor * t) {
        if (t != nullptr) {
            type = ggml_type_name(t->type);
            memcpy(ne, t->ne, sizeof(ne));
            for (int i = 0; i < GGML_MAX_DIMS; ++i) {
                nb[i] = t->nb[i];
            }
        }
    }
};

constexpr int              n_roles = 5; // sources of FLASH_ATTN_EXT
constexpr const char *     roles[n_roles] = { "Q", "K", "V", "mask", "sinks" };

struct Attention {
    int64_t         time = 0;
    char            name[GGML_MAX_NAME] = {};
    char            device[24] = {};
    int32_t         phase = 0;
    route::Decision decision;
    Tensor          sources[n_roles];
    bool            alibi = false;
    bool            softcap = false;
};

struct Line {
    int64_t time = 0;
    char    level = ' ';
    bool    open = false; // the next piece belongs to it
    char    text[240] = {};
};

struct Sequence {
    int32_t seq = 0, first = 0, last = 0, n_tokens = 0, n_outputs = 0;
};

constexpr int max_sequences = 64;

struct Decode {
    int64_t      time = 0;
    const char * architecture = nullptr;
    bool         encode = false;
    bool         draft = false;
    bool         running = true;
    int32_t      n_tokens = 0;
    int32_t      n_sequences = 0;
    int32_t      n_elsewhere = 0; // tokens of sequences that found no place below
    Sequence     sequences[max_sequences];
};

Ring<Attention, 32> attention;
Ring<Line, 32>      lines;
Ring<Decode, 4>     decodes;

// Pieces of lines come from two channels, each with a lock of its own.
std::atomic_flag     line_taken = ATOMIC_FLAG_INIT;
uint64_t             last_line = UINT64_MAX;

// Filled by one thread before its batch enters the ring.
thread_local Decode filling;

std::atomic<const char * (*) ()> describer{ nullptr };
char                             described[1024];

void write_age(Page & page, int64_t now, int64_t then) {
    const int64_t ms = (now - then) / 1000000;
    page << "  " << ms / 1000 << ".";
    page.padded((uint64_t) (ms % 1000), 3) << " s before, ";
}

template <typename T> void write_four(Page & page, const T * values) {
    page << "[" << values[0] << ", " << values[1] << ", " << values[2] << ", " << values[3] << "]";
}

} // namespace

void record_attention(const char * device, int32_t phase, const route::Decision & decision, const ggml_tensor * node) {
    if (!recording()) {
        return;
    }
    attention.write([&](Attention & one) {
        one.time = clock_ns();
        copy(one.name, node->name);
        copy(one.device, device);
        one.phase    = phase;
        one.decision = decision;
        for (int i = 0; i < n_roles; ++i) {
            one.sources[i].describe(node->src[i]);
        }
        float params[3];
        memcpy(params, node->op_params, sizeof(params));
        one.alibi   = params[1] != 0.0f;
        one.softcap = params[2] != 0.0f;
    });
}

void record_log(ggml_log_level level, const char * text) {
    if (!recording() || text == nullptr || *text == '\0') {
        return;
    }
    guard_stack();
    // Bounded: in the child of a fork the thread that holds it may not exist. The line is lost then.
    for (int tries = 0; line_taken.test_and_set(std::memory_order_acquire); ++tries) {
        if (tries == 10000) {
            return;
        }
    }
    const auto add = [text](Line & line) {
        const size_t n     = strlen(line.text);
        const size_t count = strcspn(text, "\n");
        const size_t room  = sizeof(line.text) - 1 - n;
        memcpy(line.text + n, text, count < room ? count : room);
        line.open = text[count] == '\0';
    };
    bool added = false;
    if (level == GGML_LOG_LEVEL_CONT && last_line != UINT64_MAX) {
        lines.amend(last_line, [&](Line & line) {
            if (line.open) {
                add(line);
                added = true;
            }
        });
    }
    if (!added && *text != '\n') {
        static constexpr char letters[] = { ' ', 'D', 'I', 'W', 'E', ' ' };
        last_line = lines.write([&](Line & line) {
            line.time  = clock_ns();
            line.level = letters[level >= 0 && level <= GGML_LOG_LEVEL_CONT ? level : 0];
            add(line);
        });
    }
    line_taken.clear(std::memory_order_release);
}

void Batch::open(const char * architecture, bool encode) {
    guard_stack();
    if (const auto describe = describer.exchange(nullptr); describe != nullptr) {
        copy(described, describe());
    }
    filling              = Decode();
    filling.architecture = architecture;
    filling.encode       = encode;
    // The phase of one row is decode, unless this thread computes a draft.
    filling.draft = route::phase_of(1) == PYLLM_PHASE_DRAFT;
}

void Batch::add(int32_t seq, int32_t pos, bool output) {
    const int32_t n = filling.n_sequences;
    int32_t       i = n - 1; // mostly the one before
    if (i < 0 || filling.sequences[i].seq != seq) {
        for (i = 0; i < n && filling.sequences[i].seq != seq;) {
            ++i;
        }
    }
    if (i == max_sequences) {
        filling.n_elsewhere += 1;
        return;
    }
    if (i == n) {
        filling.sequences[i] = { seq, pos, pos, 0, 0 };
        filling.n_sequences += 1;
    }
    Sequence & one = filling.sequences[i];
    one.last = pos;
    one.n_tokens += 1;
    one.n_outputs += output ? 1 : 0;
}

void Batch::close(int32_t n_tokens) {
    filling.n_tokens = n_tokens;
    filling.time     = clock_ns();
    number_          = decodes.write([](Decode & decode) { decode = filling; });
}

Batch::~Batch() {
    if (number_ != none) {
        decodes.amend(number_, [](Decode & decode) { decode.running = false; });
    }
}

void describe_later(const char * (*describe)()) {
    describer = describe;
}

const char * description() {
    return described;
}

void write_batches(Page & page, int64_t now) {
    page << "batches: the last of " << decodes.count() << "\n";
    decodes.read([&](const Decode & decode) {
        write_age(page, now, decode.time);
        page << (decode.draft ? "draft " : "target ") << (decode.encode ? "encode" : "decode") << " of " << decode.architecture
             << (decode.running ? ", running: " : ", done: ") << decode.n_tokens << " tokens\n";
        for (int32_t i = 0; i < decode.n_sequences; ++i) {
            const Sequence & one = decode.sequences[i];
            page << "    sequence " << one.seq << ": " << one.n_tokens << " tokens, positions " << one.first << " to " << one.last << ", " << one.n_outputs
                 << " outputs\n";
        }
        if (decode.n_elsewhere > 0) {
            page << "    further sequences: " << decode.n_elsewhere << " tokens\n";
        }
    });
}

void write_attention(Page & page, int64_t now) {
    page << "attention: the last of " << attention.count() << "\n";
    attention.read([&](const Attention & one) {
        write_age(page, now, one.time);
        page << one.device << " " << route::phase_name(one.phase) << " ";
        if (one.decision.route < 0) {
            page << "cpu";
        } else {
            page << route::route_name(one.decision.route) << " " << one.decision.ncols1 << "x" << one.decision.ncols2 << " row " << one.decision.row;
        }
        page << " `" << one.name << "`";
        for (int i = 0; i < n_roles; ++i) {
            const Tensor & t = one.sources[i];
            page << ", " << roles[i] << " " << (t.type != nullptr ? t.type : "none");
            if (t.type != nullptr) {
                write_four(page << " ", t.ne);
                write_four(page << " strides ", t.nb);
            }
        }
        page << (one.alibi ? ", ALiBi" : "") << (one.softcap ? ", softcap" : "") << "\n";
    });
}

void write_log(Page & page, int64_t now) {
    page << "log: the last of " << lines.count() << "\n";
    lines.read([&](const Line & line) {
        write_age(page, now, line.time);
        const char level[] = { line.level, ' ', '\0' };
        page << level << line.text << "\n";
    });
}

} // namespace pyllm::crash
