#include "amx_int8_linear.hpp"

namespace bittensor {

/// AMX's own kernels. All others of its set are those of AVX512-VNNI (dispatch.cpp), compiled once.
extern const Int8Linear amx_kernels[3];  // 2, 4, 8 bits
constinit const Int8Linear amx_kernels[3] = {amx_int8_linear<2>, amx_int8_linear<4>, amx_int8_linear<8>};

}  // namespace bittensor
