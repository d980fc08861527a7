#pragma once

// The last line that the libraries below logged as an error: what llama_process() returns is a number, the reason is in the log.

#include <string>

namespace pyllm::server {

// from now on, remember errors; the log goes where it went before. Calling it again is silent.
void remember_errors();

// forget what was logged so far: called before something that may fail
void forget_errors();

// " (reason)" of the last error since then, without its line break; empty if there was none
std::string last_error();

} // namespace pyllm::server
