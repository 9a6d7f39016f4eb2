#pragma once

/// Planes of packed bytes: with P = 8 / Bits codes in a byte, plane p is code p of every byte.

namespace bittensor {
namespace {

/// The float whose last place is worth 1 if the fraction begins at bit `shift`. A code becomes a float without a
/// conversion: where its lowest bit is bit s of a lane, its bits under those of 2^(23 - s) are the float
/// 2^(23 - s) + code, and subtracting 2^(23 - s) + zero from that is exact.
constexpr float unit_above(int shift) {
  return static_cast<float>(1 << (23 - shift));
}

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
