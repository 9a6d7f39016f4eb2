#include "amx_int8_linear.hpp"
#include "amx_integer_dot.hpp"

namespace bittensor {

/// All other kernels of the set are those of AVX512-VNNI (dispatch.cpp), compiled once.
extern const TileKernels amx_kernels;
constinit const TileKernels amx_kernels = {
    {amx_integer_dot<1>, amx_integer_dot<2>, amx_integer_dot<4>, amx_integer_dot<8>},
    {amx_int8_linear<2>, amx_int8_linear<4>, amx_int8_linear<8>}};

}  // namespace bittensor
