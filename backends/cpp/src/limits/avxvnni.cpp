#include "avx2.hpp"

namespace bittensor {
namespace {

struct AvxVnni : Avx2 {
  static constexpr Isa isa = Isa::avxvnni;
  static Integers dot(Integers sum, Integers a, Integers b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
};

}  // namespace

extern const LimitKernels avxvnni_limits;
constinit const LimitKernels avxvnni_limits = limits<AvxVnni>();

}  // namespace bittensor
