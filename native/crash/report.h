// One file about a process that dies: by an assertion of upstream, an exception that nobody catches, or a signal of the hardware.
//
// Everything is written from the signal handler, out of rings and texts made before, by write(2). Afterwards the signal goes to whoever
// handled it before, or to its default action: core dumps, debuggers and Python's faulthandler see what they would have seen.
#pragma once

#include <string>

namespace pyllm::crash {

// From now on; again: with other texts. `folder` has to exist, `build` and `about` say what runs: versions, settings, command line.
// Empty if reports are on, else what is wrong with the folder.
std::string enable(const std::string & folder, const std::string & build, const std::string & about);

// Gives the signals back. A handler that somebody put over ours stays, and ours under it writes nothing.
void disable();

// Why this thread is about to abort: goes into the report. The first one counts.
void remember(const char * message);

} // namespace pyllm::crash
