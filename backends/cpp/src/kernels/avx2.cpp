#include "avx2.hpp"

#include "assemble.hpp"

namespace bittensor {

extern const KernelSet avx2_kernels;
constinit const KernelSet avx2_kernels = assemble<Avx2>();

}  // namespace bittensor
