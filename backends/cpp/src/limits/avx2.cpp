#include "avx2.hpp"

namespace bittensor {

extern const LimitKernels avx2_limits;
constinit const LimitKernels avx2_limits = limits<Avx2>();

}  // namespace bittensor
