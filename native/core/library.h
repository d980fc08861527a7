// Start-up of upstream: once per process, by whichever noun comes first.
#pragma once

namespace pyllm {
void library_init();
}
