// Counts of attention nodes in Prometheus' text format.
#pragma once

#include <string>

namespace pyllm::route {

std::string prometheus();

}  // namespace pyllm::route
