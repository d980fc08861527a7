// Start-up of upstream: once per process, by whichever noun comes first.
#pragma once

namespace pyllm {

void library_init();

// While one of these lives, an assertion of upstream on this thread is an exception instead of the end of the process.
// For code that reads files and settings: there the frames above hold nothing but memory of their own. Never around a graph:
// its other threads would wait for this one for ever.
class abort_is_exception {
public:
    abort_is_exception();
    ~abort_is_exception();
    abort_is_exception(const abort_is_exception &) = delete;
    abort_is_exception & operator=(const abort_is_exception &) = delete;
};

} // namespace pyllm
