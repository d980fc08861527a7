#include "server/draft_fields.h"

#include <stdexcept>
#include <string>

namespace pyllm::server {

namespace {

using server_schema::field_eval_context;
using server_schema::field_json;

// A whole number in [0, n_max]. Not the schema's own number field, which rounds 1.5 and turns 2^32 into 0.
int32_t tokens(const json & value, int32_t n_max, const std::string & because) {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > n_max) {
        throw std::invalid_argument(value.dump() + " is not a whole number of tokens in [0, " + std::to_string(n_max) + "]: " + because);
    }
    return (int32_t) value.get<int64_t>();
}

} // namespace

void add_draft_fields(std::vector<std::unique_ptr<server_schema::field>> & fields, const common_params & params_base, task_params & params) {
    const int32_t n_max = common_speculative_n_max(&params_base.speculative);

    const auto add = [&](const char * name, const char * text, const server_schema::field_handler & handler) {
        fields.emplace_back((new field_json(name))->set_desc(text)->set_handler(handler));
    };

    add("speculative.n_max", "Tokens to draft at once at most (0 = no drafting for this request)", [&params, n_max](field_eval_context &, const json & data) {
        params.draft_limits.n_max = tokens(data.at("speculative.n_max"), n_max,
            n_max == 0 ? "this server drafts nothing, start it with --spec-type" : "the server was started to draft " + std::to_string(n_max) + " at once");
    });
    // after n_max: it is bounded by it
    add("speculative.n_min", "Drafts with fewer tokens are not used", [&params, n_max](field_eval_context &, const json & data) {
        params.draft_limits.n_min = tokens(data.at("speculative.n_min"), params.draft_limits.within(n_max), "a draft has at most that many");
    });
    add("speculative.p_min", "A draft ends before a token that its drafter gives less", [&params](field_eval_context &, const json & data) {
        const json & value = data.at("speculative.p_min");
        if (!value.is_number() || !(value.get<double>() >= 0.0 && value.get<double>() <= 1.0)) {
            throw std::invalid_argument(value.dump() + " is not a probability in [0, 1]");
        }
        params.draft_limits.p_min = value.get<float>();
    });
    // a client may send back the settings of an answer, so the server's own value passes, as answers have it and as drafters are named
    std::string drafters;
    for (const common_speculative_type type : params_base.speculative.types) {
        if (type != COMMON_SPECULATIVE_TYPE_NONE) {
            drafters += (drafters.empty() ? "" : ",") + common_speculative_type_to_str(type);
        }
    }
    add("speculative.types", "Not per request", [drafters, types = common_speculative_type_name_str(params_base.speculative.types)](field_eval_context &, const json & data) {
        const json & value = data.at("speculative.types");
        if (value != types && value != drafters) {
            throw std::invalid_argument(value.dump() + " is not what drafts here: the drafters are chosen when the server starts, and it has " +
                                        (drafters.empty() ? "none" : "`" + drafters + "`") + "; leave it out, or start the server with another --spec-type");
        }
    });
}

} // namespace pyllm::server
