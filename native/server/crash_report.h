// Crash reports of pyllm-server.
#pragma once

namespace pyllm::server {

// Into the folder that PYLLM_CRASH_DIR names, or the system's temporary folder; none where the variable is empty. A folder that cannot be
// written is a warning: the server works without reports.
void enable_crash_report(const char * version, int argc, char ** argv);

} // namespace pyllm::server
