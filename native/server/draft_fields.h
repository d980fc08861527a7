#pragma once

#include "server-schema.h"

#include <memory>
#include <vector>

namespace pyllm::server {

// The fields by which one request limits its drafts. Impossible values, and what only the start of the server can choose, are answered 400 with
// the way out.
void add_draft_fields(std::vector<std::unique_ptr<server_schema::field>> & fields, const common_params & params_base, task_params & params);

} // namespace pyllm::server
