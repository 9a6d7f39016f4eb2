#include "avx512.hpp"

#include "assemble.hpp"

namespace bittensor {

extern const KernelSet avx512_kernels;
constinit const KernelSet avx512_kernels = assemble<Avx512>();

}  // namespace bittensor
