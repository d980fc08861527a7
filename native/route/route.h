// The route evaluator: a table of rows over the axes of an attention node, and decisions from it. No CUDA in it.
//
// One evaluator answers the CUDA dispatcher's questions (supported? how much scratch? run what?), the Python API and the simulator.
#pragma once

#include "pyllm.h"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pyllm::route {

inline constexpr int n_axes = PYLLM_ROUTE_AXIS_COUNT;

// Values of the axis `mask`.
enum Mask : int32_t { MASK_NONE, MASK_STREAM, MASK_REPEAT, MASK_HEAD };

using Key = std::array<int32_t, n_axes>;

enum class Operator : uint8_t { in, not_in, min, max, multiple_of, not_multiple_of };

struct Condition {
    uint8_t  axis;
    Operator op;
    uint16_t count;  // of values
    uint32_t first;  // value
    uint32_t why;    // offset into the table's texts, 0 for none
};

struct Row {
    int32_t     route;
    int32_t     ncols1;
    int32_t     ncols2;
    uint32_t    first;  // condition
    uint32_t    count;
    std::string because;
};

struct Decision {
    int32_t row    = -1;  // in the table; -1: no row holds
    int32_t route  = -1;
    int32_t ncols1 = 0;
    int32_t ncols2 = 0;
};

struct Problem {
    std::string message;
    std::string hint;
};

class Table {
public:
    // nullptr and a problem when the text is of another version, not understood, or has a row that can never decide.
    static std::shared_ptr<const Table> parse(std::string_view text, Problem & problem);

    const std::vector<Row> & rows() const { return rows_; }
    const std::vector<Row> & accepts() const { return accepts_; }

    bool holds(const Condition & condition, int32_t value) const {
        const int32_t * values = &values_[condition.first];
        switch (condition.op) {
            case Operator::in: return listed(values, condition.count, value);
            case Operator::not_in: return !listed(values, condition.count, value);
            case Operator::min: return value >= *values;
            case Operator::max: return value <= *values;
            case Operator::multiple_of: return value % *values == 0;
            case Operator::not_multiple_of: return value % *values != 0;
        }
        return false;
    }
    // Index of the first condition of the row that does not hold, relative to the row; -1 if all do.
    int         first_failing(const Row & row, const Key & key) const;
    std::string sentence(const Condition & condition, int32_t value) const;
    const Condition & condition(uint32_t index) const { return conditions_[index]; }

private:
    friend class Plan;
    static bool listed(const int32_t * values, int count, int32_t value) {
        for (int i = 0; i < count; ++i) {
            if (values[i] == value) {
                return true;
            }
        }
        return false;
    }
    bool shadows(const Row & earlier, const Row & later) const;

    std::vector<Row>         rows_;
    std::vector<Row>         accepts_;
    std::vector<Condition>   conditions_;
    std::vector<int32_t>     values_;
    std::vector<std::string> texts_{ "" };
};

// The table in force: the built-in one, PYLLM_ROUTES, or what was set. Decisions made before stay as they are.
std::shared_ptr<const Table> current();
void                         set_current(std::shared_ptr<const Table> table);
std::string_view             default_text();

// The first row of the table in force that holds and is not blocked.
Decision decide(const Key & key);

// Runs of a row that found no room on the device (occupancy zero) block it for that architecture: the next row decides from then on.
void block(int32_t arch, int32_t row);
void unblock_all();

// A row or, failing that, an executor of exactly this route that takes the key; row -1 if there is none.
Decision force(const Key & key, int32_t route);

// Why no executor of a route takes the key: the reason of the one that comes nearest.
std::string why_not(const Key & key, int32_t route);

std::string key_text(const Key & key);

const char * route_name(int32_t route);
int32_t      route_from_name(std::string_view name);  // -1 if unknown

}  // namespace pyllm::route
