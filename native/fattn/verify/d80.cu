// Instances of the verify route for head dims 80/80 and 112/112.
#if !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#include "fattn/verify/kernel_of.cuh"

namespace pyllm::verify {

template kernel_t kernel_of<80, 80>(int);
template kernel_t kernel_of<112, 112>(int);

}  // namespace pyllm::verify
#endif
