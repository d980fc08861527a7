// Decisions from the table in force. A decision is made once per distinct node: each thread remembers the last ones.
#include "route/axes.h"
#include "route/route.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <stdexcept>

namespace pyllm::route {

static const char default_table[] =
#include "route/default_table.inc"
    ;

std::string_view default_text() {
    return default_table;
}

// What remains of a table on one device: rows by head dims, without the conditions that the device and the head dims decide.
class Plan {
public:
    Plan(std::shared_ptr<const Table> table, const Key & key, const std::set<std::pair<int32_t, int32_t>> & blocked) : table_(std::move(table)) {
        std::copy(key.begin(), key.begin() + n_device, device_.begin());
        for (const Row & row : table_->rows_) {
            for (uint32_t i = 0; i < row.count; ++i) {
                const Condition & condition = table_->conditions_[row.first + i];
                if (lists_heads(condition)) {
                    heads_.insert(heads_.end(), &table_->values_[condition.first], &table_->values_[condition.first] + condition.count);
                }
            }
        }
        std::sort(heads_.begin(), heads_.end());
        heads_.erase(std::unique(heads_.begin(), heads_.end()), heads_.end());
        heads_.push_back(-1);  // every other head
        lists_.resize(heads_.size());
        for (size_t h = 0; h < heads_.size(); ++h) {
            Key here = key;
            here[PYLLM_ROUTE_HEAD] = heads_[h];
            for (int32_t number = 0; number < (int32_t) table_->rows_.size(); ++number) {
                if (blocked.count({ key[PYLLM_ROUTE_ARCH], number }) == 0) {
                    add(lists_[h], here, number);
                }
            }
            std::for_each(lists_[h].begin(), lists_[h].end(), [&](Chunk & chunk) { compile(chunk); });
        }
    }

    bool is_for(const Key & key) const { return std::equal(device_.begin(), device_.end(), key.begin()); }

    Decision decide(const Key & key) const {
        size_t h = 0;
        while (heads_[h] != key[PYLLM_ROUTE_HEAD] && h + 1 < heads_.size()) {
            ++h;
        }
        // No branch depends on a row: each distinct condition rules out a set of rows.
        for (const Chunk & chunk : lists_[h]) {
            uint64_t out = 0;
            for (const Range & test : chunk.ranges) {
                out |= key[test.axis] >= test.least && key[test.axis] <= test.most ? 0 : test.rows;
            }
            for (const Listed & test : chunk.listed) {
                const uint32_t value = (uint32_t) key[test.axis];
                const uint32_t word  = std::min(value / 64, test.words);
                out |= bits_[test.first + word] >> value % 64 & 1 ? 0 : test.rows;
            }
            for (const Other & test : chunk.others) {
                out |= table_->holds(test.condition, key[test.condition.axis]) ? 0 : test.rows;
            }
            if (const uint64_t left = ~out & chunk.all) {
                return chunk.decisions[__builtin_ctzll(left)];
            }
        }
        return {};
    }

private:
    // A condition, and the rows of a chunk that have it, in the form that is quickest to answer.
    struct Range {
        int32_t  axis, least, most;
        uint64_t rows;
    };
    // One bit for each value below 64 * words; the word after them is for all others.
    struct Listed {
        int32_t  axis;
        uint32_t first, words;
        uint64_t rows;
    };
    struct Other {
        Condition condition;
        uint64_t  rows;
    };
    // Up to 64 rows, in order.
    struct Chunk {
        std::vector<Decision>                       decisions;
        std::vector<std::pair<Condition, uint64_t>> tests;  // each distinct condition once
        std::vector<Range>                          ranges;
        std::vector<Listed>                         listed;
        std::vector<Other>                          others;
        uint64_t                                    all = 0;
    };

    // What compares head dims otherwise (`head.min`) cannot be answered for "every other head" at once: it stays a test of the key.
    static bool lists_heads(const Condition & condition) {
        return condition.axis == PYLLM_ROUTE_HEAD && (condition.op == Operator::in || condition.op == Operator::not_in);
    }

    void add(std::vector<Chunk> & list, const Key & here, int32_t number) const {
        const Row & row = table_->rows_[number];
        for (uint32_t i = 0; i < row.count; ++i) {
            const Condition & condition = table_->conditions_[row.first + i];
            if ((condition.axis < n_device || lists_heads(condition)) && !table_->holds(condition, here[condition.axis])) {
                return;
            }
        }
        if (list.empty() || list.back().decisions.size() == 64) {
            list.emplace_back();
        }
        Chunk &        chunk = list.back();
        const uint64_t bit   = uint64_t(1) << chunk.decisions.size();
        chunk.decisions.push_back({ number, row.route, row.ncols1, row.ncols2 });
        chunk.all |= bit;
        for (uint32_t i = 0; i < row.count; ++i) {
            const Condition & condition = table_->conditions_[row.first + i];
            if (condition.axis < n_device || lists_heads(condition)) {
                continue;
            }
            const auto same = std::find_if(chunk.tests.begin(), chunk.tests.end(), [&](const auto & test) { return equal(test.first, condition); });
            if (same == chunk.tests.end()) {
                chunk.tests.push_back({ condition, bit });
            } else {
                same->second |= bit;
            }
        }
    }

    void compile(Chunk & chunk) {
        constexpr int32_t longest = 4096;  // bits; K/V types are the widest axis that is listed
        for (const auto & [condition, rows] : chunk.tests) {
            const int32_t * values = &table_->values_[condition.first];
            const int32_t * end    = values + condition.count;
            const bool      listed = condition.op == Operator::in || condition.op == Operator::not_in;
            if (condition.op == Operator::min || condition.op == Operator::max || (condition.op == Operator::in && condition.count == 1)) {
                chunk.ranges.push_back({ condition.axis, condition.op == Operator::max ? INT32_MIN : *values, condition.op == Operator::min ? INT32_MAX : *values, rows });
            } else if (listed && std::all_of(values, end, [](int32_t value) { return value >= 0 && value < longest; })) {
                const uint32_t words = (uint32_t) *std::max_element(values, end) / 64 + 1;
                chunk.listed.push_back({ condition.axis, (uint32_t) bits_.size(), words, rows });
                bits_.resize(bits_.size() + words + 1, condition.op == Operator::not_in ? ~uint64_t(0) : 0);
                uint64_t * first = &bits_[chunk.listed.back().first];
                for (; values != end; ++values) {
                    const uint64_t bit = uint64_t(1) << *values % 64;
                    first[*values / 64] = condition.op == Operator::in ? first[*values / 64] | bit : first[*values / 64] & ~bit;
                }
            } else {
                chunk.others.push_back({ condition, rows });
            }
        }
        chunk.tests = {};
    }

    bool equal(const Condition & a, const Condition & b) const {
        const int32_t * values = table_->values_.data();
        return a.axis == b.axis && a.op == b.op && a.count == b.count && std::equal(values + a.first, values + a.first + a.count, values + b.first);
    }

    static constexpr int          n_device = PYLLM_ROUTE_HEAD;
    std::shared_ptr<const Table>  table_;
    std::array<int32_t, n_device> device_;
    std::vector<int32_t>          heads_;
    std::vector<std::vector<Chunk>> lists_;
    std::vector<uint64_t>         bits_;
};

// The table in force. `generation` changes with it and with what is blocked: plans and remembered decisions of another one are void.
struct State {
    std::mutex                            mutex;
    std::atomic<uint64_t>                 generation{ 1 };
    std::shared_ptr<const Table>          table;
    std::set<std::pair<int32_t, int32_t>> blocked;
};

static std::shared_ptr<const Table> first_table() {
    Problem      problem;
    const char * path = getenv("PYLLM_ROUTES");
    if (path == nullptr || *path == 0) {
        auto table = Table::parse(default_table, problem);
        if (!table) {
            throw std::logic_error("the built-in route table: " + problem.message);
        }
        return table;
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error(std::string("PYLLM_ROUTES names `") + path + "`, which cannot be read");
    }
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    auto              table = Table::parse(text, problem);
    if (!table) {
        throw std::runtime_error(std::string("PYLLM_ROUTES `") + path + "`, " + problem.message + "; " + problem.hint);
    }
    return table;
}

static State & state() {
    static State state;
    return state;
}

std::shared_ptr<const Table> current() {
    State &                     s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.table) {
        s.table = first_table();
    }
    return s.table;
}

void set_current(std::shared_ptr<const Table> table) {
    State &                     s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.table = std::move(table);
    s.blocked.clear();
    ++s.generation;
}

void block(int32_t arch, int32_t row) {
    State &                     s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.blocked.insert({ arch, row });
    ++s.generation;
}

void unblock_all() {
    State &                     s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    s.blocked.clear();
    ++s.generation;
}

// Each pair of axes is multiplied by an odd constant of its own, so that the products do not wait for each other.
static uint64_t hash(const Key & key) {
    static_assert(n_axes % 2 == 1, "the last axis stands alone");
    uint64_t sum = (uint32_t) key[n_axes - 1] * 0xD6E8FEB86659FD93u;
    uint64_t odd = 0x9E3779B97F4A7C15u;
    for (int i = 0; i + 1 < n_axes; i += 2) {
        sum += (uint64_t((uint32_t) key[i]) << 32 | (uint32_t) key[i + 1]) * odd;
        odd += 0x3C6EF372FE94F82Au;
    }
    return (sum ^ sum >> 32) * 0xD6E8FEB86659FD93u;
}

// What a thread remembers: the last decisions by the hash of their keys, and the plans of its devices.
//
// A key may lie in any of the four places of its set, so that the 64 kinds of nodes that a model has do not push each other out.
struct Memory {
    static constexpr size_t n_sets = 128;
    struct Seen {
        Key      key;
        uint64_t hash       = 0;
        uint64_t generation = 0;
        Decision decision;
    };
    struct Set {
        std::array<Seen, 4> seen;
        size_t              next = 0;  // to be replaced
    };
    std::array<Set, n_sets>            sets;
    std::vector<std::unique_ptr<Plan>> plans;
    uint64_t                           generation = 0;
};

Decision decide(const Key & key) {
    static State &                              s = state();
    static thread_local std::unique_ptr<Memory> memory;
    Memory *                                    m = memory.get();
    if (m == nullptr) {
        memory = std::make_unique<Memory>();
        m      = memory.get();
    }
    const uint64_t now = s.generation.load(std::memory_order_acquire);
    const uint64_t code = hash(key);
    Memory::Set &  set  = m->sets[(code >> 40) % Memory::n_sets];
    for (const Memory::Seen & one : set.seen) {
        if (one.hash == code && one.generation == now && one.key == key) {
            return one.decision;
        }
    }
    if (m->generation != now) {
        m->plans.clear();
        m->generation = now;
    }
    Plan * plan = nullptr;
    for (const auto & each : m->plans) {
        if (each->is_for(key)) {
            plan = each.get();
            break;
        }
    }
    if (plan == nullptr) {
        const std::shared_ptr<const Table>    table = current();
        std::set<std::pair<int32_t, int32_t>> blocked;
        {
            std::lock_guard<std::mutex> lock(s.mutex);
            blocked = s.blocked;
        }
        m->plans.push_back(std::make_unique<Plan>(table, key, blocked));
        plan = m->plans.back().get();
    }
    Memory::Seen & one = set.seen[set.next++ % set.seen.size()];
    one = { key, code, now, plan->decide(key) };
    return one.decision;
}

Decision force(const Key & key, int32_t route) {
    const std::shared_ptr<const Table> table = current();
    for (size_t number = 0; number < table->rows().size(); ++number) {
        const Row & row = table->rows()[number];
        if (row.route == route && table->first_failing(row, key) < 0) {
            return { (int32_t) number, row.route, row.ncols1, row.ncols2 };
        }
    }
    for (size_t number = 0; number < table->accepts().size(); ++number) {
        const Row & row = table->accepts()[number];
        if (row.route == route && table->first_failing(row, key) < 0) {
            return { (int32_t) (table->rows().size() + number), row.route, row.ncols1, row.ncols2 };
        }
    }
    return {};
}

std::string why_not(const Key & key, int32_t route) {
    const std::shared_ptr<const Table> table = current();
    // Of the executors of the route, the one that takes most of the key, and what it does not take.
    int         most = -1;
    std::string text = "the table has no executor of this route";
    for (const Row & row : table->accepts()) {
        if (row.route != route) {
            continue;
        }
        int               held    = 0;
        const Condition * failing = nullptr;
        for (uint32_t i = 0; i < row.count; ++i) {
            const Condition & condition = table->condition(row.first + i);
            if (table->holds(condition, key[condition.axis])) {
                ++held;
            } else if (failing == nullptr) {
                failing = &condition;
            }
        }
        if (failing != nullptr && held > most) {
            most = held;
            text = table->sentence(*failing, key[failing->axis]);
        }
    }
    return text;
}

std::string key_text(const Key & key) {
    std::string text;
    for (int axis = 0; axis < n_axes; ++axis) {
        text += (axis ? " " : "") + std::string(axis_info(axis).name) + "=" + decode(axis, key[axis]);
    }
    return text;
}

}  // namespace pyllm::route
