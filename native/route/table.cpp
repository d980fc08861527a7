// Reads a table's text (pyllm/routes/tablefile.py writes it) and says what its conditions mean.
#include "route/axes.h"
#include "route/route.h"

#include <algorithm>
#include <charconv>

namespace pyllm::route {

static constexpr std::string_view version      = "pyllm-routes 1";
static constexpr std::string_view routes[]     = { "vec", "tile", "mma", "sparse", "verify", "reference" };
static constexpr std::string_view operators[]  = { "in", "not_in", "min", "max", "multiple_of", "not_multiple_of" };
static constexpr const char *     sentences[]  = { ", needs ", ", which is excluded: ", ", needs at least ", ", at most ", ", needs a multiple of ", ", a multiple of " };
static_assert(std::size(routes) == PYLLM_ROUTE_COUNT);

const char * route_name(int32_t route) {
    return route >= 0 && route < PYLLM_ROUTE_COUNT ? routes[route].data() : "none";
}

int32_t route_from_name(std::string_view name) {
    const auto found = std::find(std::begin(routes), std::end(routes), name);
    return found == std::end(routes) ? -1 : (int32_t) (found - std::begin(routes));
}

// Edit distance, for "did you mean".
static size_t distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) {
        row[j] = j;
    }
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t above = row[j];
            row[j] = std::min({ row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]) });
            diagonal = above;
        }
    }
    return row[b.size()];
}

template <typename Names> static std::string near(std::string_view word, const Names & names) {
    std::string_view best;
    size_t           least = 3;
    std::string      all;
    for (const std::string_view name : names) {
        all += (all.empty() ? "" : ", ") + std::string(name);
        if (const size_t far = distance(word, name); far < least) {
            least = far;
            best  = name;
        }
    }
    return best.empty() ? "one of " + all : "did you mean `" + std::string(best) + "`?";
}

std::string route_hint(std::string_view name) {
    return near(name, routes);
}

static std::vector<std::string_view> split(std::string_view line) {
    std::vector<std::string_view> words;
    while (true) {
        const size_t begin = line.find_first_not_of(" \t\r");
        if (begin == std::string_view::npos) {
            return words;
        }
        line.remove_prefix(begin);
        const size_t end = std::min(line.find_first_of(" \t\r"), line.size());
        words.push_back(line.substr(0, end));
        line.remove_prefix(end);
    }
}

std::shared_ptr<const Table> Table::parse(std::string_view text, Problem & problem) {
    auto table = std::make_shared<Table>();
    int  line_number = 0;
    std::vector<Row> * rows = nullptr;
    const auto fail = [&](std::string message, std::string hint) {
        problem = { "line " + std::to_string(line_number) + ": " + std::move(message), std::move(hint) };
        return nullptr;
    };
    while (!text.empty()) {
        const size_t           end  = std::min(text.find('\n'), text.size());
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (++line_number == 1) {
            if (line != version) {
                return fail("`" + std::string(line.substr(0, 60)) + "` is not `" + std::string(version) + "`", "make the table anew with `pyllm routes table` of this version");
            }
            continue;
        }
        const std::vector<std::string_view> words = split(line);
        if (words.empty()) {
            continue;
        }
        if (words[0] == "row" || words[0] == "accept") {
            rows = words[0] == "row" ? &table->rows_ : &table->accepts_;
            if (words.size() < 4) {
                return fail("not `row ROUTE NCOLS1 NCOLS2`", "see `pyllm routes table`");
            }
            Row row{ route_from_name(words[1]), 0, 0, (uint32_t) table->conditions_.size(), 0, "" };
            if (row.route < 0) {
                return fail("route `" + std::string(words[1]) + "` is not known", near(words[1], routes));
            }
            for (const auto & [word, number] : { std::pair{ words[2], &row.ncols1 }, std::pair{ words[3], &row.ncols2 } }) {
                const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), *number);
                if (error != std::errc() || stop != word.data() + word.size()) {
                    return fail("`" + std::string(word) + "` is no number", "tile sizes, 0 0 where the route has none");
                }
            }
            if (const size_t because = line.find(" because "); because != std::string_view::npos) {
                row.because = line.substr(because + 9);
            }
            rows->push_back(std::move(row));
        } else if (words[0] == "when" && rows != nullptr) {
            const size_t because = line.find(" ; ");
            const std::vector<std::string_view> parts = split(line.substr(0, because));
            if (parts.size() < 4) {
                return fail("not `when AXIS OPERATOR VALUE ...`", "see `pyllm routes table`");
            }
            const int axis = axis_from_name(parts[1]);
            if (axis < 0) {
                std::vector<std::string_view> names;
                for (int i = 0; i < n_axes; ++i) {
                    names.push_back(axis_info(i).name);
                }
                return fail("axis `" + std::string(parts[1]) + "` is not known", near(parts[1], names));
            }
            const auto op = std::find(std::begin(operators), std::end(operators), parts[2]);
            if (op == std::end(operators)) {
                return fail("operator `" + std::string(parts[2]) + "` is not known", near(parts[2], operators));
            }
            Condition condition{ (uint8_t) axis, (Operator) (op - std::begin(operators)), (uint16_t) (parts.size() - 3), (uint32_t) table->values_.size(), 0 };
            for (size_t i = 3; i < parts.size(); ++i) {
                int32_t value = 0;
                if (!encode(axis, parts[i], value)) {
                    return fail("`" + std::string(parts[i]) + "` is no value of axis `" + std::string(parts[1]) + "`", "see `pyllm routes table`");
                }
                table->values_.push_back(value);
            }
            if (condition.op > Operator::not_in && condition.count != 1) {
                return fail("`" + std::string(parts[2]) + "` takes one value", "use `in` for several");
            }
            if (condition.op >= Operator::multiple_of && table->values_[condition.first] < 1) {
                return fail("a divisor of " + std::to_string(table->values_[condition.first]), "a divisor is at least 1");
            }
            if (because != std::string_view::npos) {
                condition.why = (uint32_t) table->texts_.size();
                table->texts_.emplace_back(line.substr(because + 3));
            }
            table->conditions_.push_back(condition);
            ++rows->back().count;
        } else {
            return fail("`" + std::string(words[0]) + "` is not expected here", "lines start with row, accept or when");
        }
    }
    if (table->rows_.empty()) {
        return fail("the table has no rows", "the last row has to take every node: `row reference 0 0`");
    }
    if (const Row & last = table->rows_.back(); last.count != 0 || last.route != PYLLM_ROUTE_REFERENCE) {
        return fail("the last row does not take every node", "end the table with `row reference 0 0`");
    }
    for (size_t later = 1; later < table->rows_.size(); ++later) {
        for (size_t earlier = 0; earlier < later; ++earlier) {
            if (table->shadows(table->rows_[earlier], table->rows_[later])) {
                return fail("row " + std::to_string(later) + " (" + route_name(table->rows_[later].route) + ") can never decide: row " + std::to_string(earlier) + " (" +
                                route_name(table->rows_[earlier].route) + ") holds wherever it does",
                            "delete the row, or put it first");
            }
        }
    }
    return table;
}

int Table::first_failing(const Row & row, const Key & key) const {
    for (uint32_t i = 0; i < row.count; ++i) {
        const Condition & condition = conditions_[row.first + i];
        if (!holds(condition, key[condition.axis])) {
            return (int) i;
        }
    }
    return -1;
}

// Whether every condition of `earlier` follows from a condition of `later` on the same axis.
bool Table::shadows(const Row & earlier, const Row & later) const {
    for (uint32_t i = 0; i < earlier.count; ++i) {
        const Condition & wide    = conditions_[earlier.first + i];
        bool              implied = false;
        for (uint32_t j = 0; j < later.count && !implied; ++j) {
            const Condition & narrow = conditions_[later.first + j];
            if (narrow.axis != wide.axis) {
                continue;
            }
            if (narrow.op == Operator::in) {
                implied = std::all_of(&values_[narrow.first], &values_[narrow.first] + narrow.count, [&](int32_t value) { return holds(wide, value); });
            } else if (narrow.op == wide.op) {
                const int32_t a = values_[narrow.first], b = values_[wide.first];
                switch (wide.op) {
                    case Operator::min: implied = a >= b; break;
                    case Operator::max: implied = a <= b; break;
                    case Operator::multiple_of: implied = a % b == 0; break;
                    case Operator::not_multiple_of: implied = b % a == 0; break;
                    default:
                        implied = std::all_of(&values_[wide.first], &values_[wide.first] + wide.count, [&](int32_t value) { return !holds(narrow, value); });
                }
            }
        }
        if (!implied) {
            return false;
        }
    }
    return true;
}

std::string Table::sentence(const Condition & condition, int32_t value) const {
    std::string text = axis_info(condition.axis).phrase;
    text += ": " + decode(condition.axis, value) + sentences[(int) condition.op];
    for (uint32_t i = 0; i < condition.count; ++i) {
        text += (i ? " or " : "") + decode(condition.axis, values_[condition.first + i]);
    }
    return condition.why ? text + " (" + texts_[condition.why] + ")" : text;
}

}  // namespace pyllm::route
