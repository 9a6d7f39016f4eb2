#include "scalar.hpp"

#include "assemble.hpp"

namespace bittensor {

extern const KernelSet scalar_kernels;
constinit const KernelSet scalar_kernels = assemble<Scalar>();

}  // namespace bittensor
