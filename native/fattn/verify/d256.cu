// Instances of the verify route for head dims 256/256.
#if !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#include "fattn/verify/kernel_of.cuh"

namespace pyllm::verify {

template kernel_t kernel_of<256, 256>(int);

}  // namespace pyllm::verify
#endif
