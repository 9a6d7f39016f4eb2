#pragma once

/// SiLU and GELU from additions, multiplications, divisions and fused multiply-adds in a fixed order, so that their
/// bits are the same on every instruction set V. docs/numerics.md, section 7, defines them and bounds their error.

#include <cstdint>

namespace bittensor {
namespace {

/// exp(-t) for t >= 0. With n = rne(-t / ln 2) and r = -t - n ln 2 it is 2^n exp(r); the polynomial is the minimax one
/// of degree 6 on |r| <= ln 2 / 2, relative error 1.5e-8. From 126.5 ln 2 on, where n is -127, 2^n and the result are
/// 0. A NaN counts as 88, so that n is always an integer; the callers' other operands keep it a NaN.
template <class V>
typename V::Float exp_of_negative(typename V::Float t) {
  using Float = typename V::Float;
  const auto constant = [](float value) { return V::broadcast_f32(value); };
  const Float bounded = V::min(constant(88.0F), t);
  const typename V::LaneSum n = V::round_to_i32(V::multiply(bounded, constant(-0x1.715476p0F)));
  const Float n_float = V::to_float(n);
  // ln 2 in two parts, of which the first has few bits, so that n times it is exact
  Float r = V::fma(n_float, constant(-0x1.63p-1F), V::subtract_f32(constant(0.0F), bounded));
  r = V::fma(n_float, constant(0x1.bd0106p-13F), r);
  Float p = constant(0x1.6c69fp-10F);
  p = V::fma(p, r, constant(0x1.120b28p-7F));
  p = V::fma(p, r, constant(0x1.5555bap-5F));
  p = V::fma(p, r, constant(0x1.5554dep-3F));
  p = V::fma(p, r, constant(0.5F));
  p = V::fma(p, r, constant(1.0F));
  p = V::fma(p, r, constant(1.0F));
  return V::multiply(p, V::power_of_two(n));
}

/// v / (1 + exp(-v)), with the exponential of the negative magnitude only: it never overflows. -inf gives NaN, as the
/// product of infinity and 0.
template <class V>
typename V::Float silu(typename V::Float v) {
  const typename V::Float e = exp_of_negative<V>(V::magnitude(v));
  const typename V::Float numerator = V::where_negative(v, V::multiply(v, e), v);
  return V::divide(numerator, V::add(V::broadcast_f32(1.0F), e));
}

/// v Phi(v), with Phi(-|v|) = erfc(u) / 2, u = |v| / sqrt(2), and erfc(u) = exp(-u^2) s P(s), s = 1 / (1 + 0.375 u).
/// P is the polynomial of degree 8 with the least relative error on 0 <= u <= 9.5, 1.2e-8.
template <class V>
typename V::Float gelu(typename V::Float v) {
  using Float = typename V::Float;
  const auto constant = [](float value) { return V::broadcast_f32(value); };
  const Float u = V::multiply(V::magnitude(v), constant(0x1.6a09e6p-1F));
  const Float s = V::divide(constant(1.0F), V::fma(u, constant(0.375F), constant(1.0F)));
  Float p = constant(0x1.f96b82p-5F);
  p = V::fma(p, s, constant(-0x1.26fd6ep-2F));
  p = V::fma(p, s, constant(0x1.bc4f1p-2F));
  p = V::fma(p, s, constant(-0x1.d93f88p-3F));
  p = V::fma(p, s, constant(0x1.19710ep-2F));
  p = V::fma(p, s, constant(0x1.efc604p-4F));
  p = V::fma(p, s, constant(0x1.a4b8c6p-3F));
  p = V::fma(p, s, constant(0x1.af609cp-3F));
  p = V::fma(p, s, constant(0x1.b162e6p-3F));
  const Float tail = V::multiply(constant(0.5F), V::multiply(V::multiply(p, s), exp_of_negative<V>(V::multiply(u, u))));
  return V::multiply(v, V::where_negative(v, tail, V::subtract_f32(constant(1.0F), tail)));
}

}  // namespace
}  // namespace bittensor
