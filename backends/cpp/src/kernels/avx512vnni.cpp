#include "avx512vnni.hpp"

#include "assemble.hpp"

namespace bittensor {

extern const KernelSet avx512vnni_kernels;
constinit const KernelSet avx512vnni_kernels = assemble<Avx512Vnni>();

}  // namespace bittensor
