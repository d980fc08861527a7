// The flags about attention routes that pyllm-server has beside upstream's.
#pragma once

#include <vector>

namespace pyllm::server {

// Takes --force-route [PHASE=]ROUTE,..., --routes FILE and --allow-cpu-attention out of `arguments` and puts them in force; the environment's
// PYLLM_FORCE_ROUTE and PYLLM_ROUTES are looked at too. False after an error, which has been printed: nothing has been started then.
bool take_route_flags(std::vector<char *> & arguments);

}  // namespace pyllm::server
