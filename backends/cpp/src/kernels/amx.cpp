#include "amx.hpp"

#include "amx_int8_linear.hpp"
#include "assemble.hpp"

namespace bittensor {
namespace {

constexpr KernelSet assemble_amx() {
  KernelSet set = assemble<Amx>();
  set.linear.int8_linear[0] = amx_int8_linear<2>;
  set.linear.int8_linear[1] = amx_int8_linear<4>;
  set.linear.int8_linear[2] = amx_int8_linear<8>;
  return set;
}

}  // namespace

extern const KernelSet amx_kernels;
constinit const KernelSet amx_kernels = assemble_amx();

}  // namespace bittensor
