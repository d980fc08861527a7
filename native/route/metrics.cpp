#include "route/metrics.h"

#include "route/control.h"

namespace pyllm::route {

std::string prometheus() {
    std::string text = "# HELP llamacpp:attention_nodes_total Attention nodes issued, by the route that ran them.\n"
                       "# TYPE llamacpp:attention_nodes_total counter\n";
    for (const pyllm_route_count & one : counts()) {
        text += std::string("llamacpp:attention_nodes_total{device=\"") + one.device + "\",route=\"" + (one.route < 0 ? "cpu" : route_name(one.route)) + "\",phase=\"" +
                phase_name(one.phase) + "\"} " + std::to_string(one.n_nodes) + "\n";
    }
    return text;
}

}  // namespace pyllm::route
