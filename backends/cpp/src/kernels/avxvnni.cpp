#include "avxvnni.hpp"

#include "assemble.hpp"

namespace bittensor {

extern const KernelSet avxvnni_kernels;
constinit const KernelSet avxvnni_kernels = assemble<AvxVnni>();

}  // namespace bittensor
