#include "avx512.hpp"

namespace bittensor {

extern const LimitKernels avx512_limits;
constinit const LimitKernels avx512_limits = limits<Avx512>();

}  // namespace bittensor
