// A record of the attention nodes that a context really issues.
#pragma once

#include "pyllm.h"

#include "ggml.h"

#include <map>
#include <string>
#include <vector>

namespace pyllm {

class trace_log {
public:
    // ggml_backend_sched_eval_callback; user is the trace_log
    static bool on_eval(ggml_tensor * node, bool ask, void * user);

    void clear();
    const std::vector<pyllm_attention_node> & nodes() const { return list; }

private:
    void add(const ggml_tensor * node);

    std::vector<pyllm_attention_node> list;
    std::map<std::string, size_t>     index; // bytes of a node without its count -> place in list
};

} // namespace pyllm
