#pragma once

/// Traits of the AMX kernels: those of AVX512-VNNI. What the tile registers do stands in amx_int8_linear.hpp.

#include "avx512vnni.hpp"

namespace bittensor {
namespace {

struct Amx : Avx512Vnni {
  static constexpr Isa isa = Isa::amx;
};

}  // namespace
}  // namespace bittensor
