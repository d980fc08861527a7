// A signal stack for the calling thread, so that the overflow of its own is reported too.
#pragma once

namespace pyllm::crash {

// Once per thread; later calls cost a look at a thread-local. Gives the thread's former signal stack back when the thread ends.
void guard_stack();

} // namespace pyllm::crash
