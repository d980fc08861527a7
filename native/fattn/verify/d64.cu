// Instances of the verify route for head dims 64/64.
#if !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#include "fattn/verify/kernel_of.cuh"

namespace pyllm::verify {

template kernel_t kernel_of<64, 64>(int);

}  // namespace pyllm::verify
#endif
