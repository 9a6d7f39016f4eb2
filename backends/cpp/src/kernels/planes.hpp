#pragma once

/// Planes of packed bytes: with P = 8 / Bits codes in a byte, plane p is code p of every byte.

namespace bittensor {
namespace {

/// A code becomes a float without a conversion: its bits under those of 2^23 are the float 2^23 + code, and subtracting
/// 2^23 + zero from that is exact.
inline constexpr float above_codes = 0x1p23F;

/// Calls f with each plane index as a compile-time constant.
template <int Planes, class F>
[[gnu::always_inline]] inline void for_each_plane(const F& f) {
  const auto call = [&f]<int Plane>(const auto& self) {
    if constexpr (Plane < Planes) {
      f.template operator()<Plane>();
      self.template operator()<Plane + 1>(self);
    }
  };
  call.template operator()<0>(call);
}

}  // namespace
}  // namespace bittensor
