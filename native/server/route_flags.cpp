#include "server/route_flags.h"

#include "route/control.h"
#include "route/route.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace pyllm::server {

static bool fail(const std::string & message, const std::string & hint) {
    fprintf(stderr, "error: %s\n\nhint: %s\n", message.c_str(), hint.c_str());
    return false;
}

static bool force(const char * where, const char * text) {
    const std::string problem = route::force_from_text(text);
    return problem.empty() || fail(std::string(where) + " `" + text + "`: " + problem, "for example --force-route mma, or --force-route decode=vec,verify=mma");
}

bool take_route_flags(std::vector<char *> & arguments) {
    std::vector<char *> rest;
    const char *        forced = getenv("PYLLM_FORCE_ROUTE");
    if (forced != nullptr && *forced != 0 && !force("PYLLM_FORCE_ROUTE", forced)) {
        return false;
    }
    for (size_t i = 0; i < arguments.size(); ++i) {
        const std::string name = arguments[i];
        if (name == "--allow-cpu-attention") {
            route::allow_cpu(true);
            continue;
        }
        if (name != "--force-route" && name != "--routes") {
            rest.push_back(arguments[i]);
            continue;
        }
        if (i + 1 == arguments.size() || arguments[i + 1][0] == '-') {
            return fail("`" + name + "` needs a value", name == "--routes" ? "a file, as `pyllm routes table` writes it" : "a route: vec, tile, mma, sparse, verify or reference");
        }
        const char * value = arguments[++i];
        if (name == "--force-route" && !force("--force-route", value)) {
            return false;
        }
        if (name == "--routes") {
            setenv("PYLLM_ROUTES", value, 1);
        }
    }
    try {
        route::current();
    } catch (const std::exception & problem) {
        return fail(problem.what(), "`pyllm routes check FILE` looks at a table");
    }
    arguments = std::move(rest);
    return true;
}

}  // namespace pyllm::server
