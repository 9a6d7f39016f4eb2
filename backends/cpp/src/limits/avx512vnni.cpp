#include "avx512.hpp"

namespace bittensor {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr Isa isa = Isa::avx512vnni;
  static Integers dot(Integers sum, Integers a, Integers b) { return _mm512_dpbusd_epi32(sum, a, b); }
};

}  // namespace

extern const LimitKernels avx512vnni_limits;
constinit const LimitKernels avx512vnni_limits = limits<Avx512Vnni>();

}  // namespace bittensor
