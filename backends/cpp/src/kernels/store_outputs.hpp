#pragma once

/// The end of a linear: bias, activation and the cast, written once for every instruction set V (a traits class).

#include <cstddef>
#include <cstdint>

#include "activation_functions.hpp"
#include "bittensor/linear_kernels.hpp"

namespace bittensor {
namespace {

template <class V>
void store_outputs(
    const float* y, std::int64_t columns, const float* bias, Activation activation, const void* residual,
    FloatType type, void* out) {
  const typename V::Float zero = V::broadcast_f32(0.0F);
  const auto finish = [&](const float* from, const float* bias_from, const void* residual_from) {
    typename V::Float value = V::load_float(from, FloatType::f32);
    if (bias_from != nullptr) value = V::add(value, V::load_float(bias_from, FloatType::f32));
    switch (activation) {
      case Activation::relu: value = V::max(value, zero); break;
      case Activation::gelu: value = gelu<V>(value); break;
      case Activation::silu: value = silu<V>(value); break;
      default: break;
    }
    return residual_from != nullptr ? V::add(value, V::load_float(residual_from, type)) : value;
  };
  const auto* added = static_cast<const std::uint8_t*>(residual);
  auto* to = static_cast<std::uint8_t*>(out);
  const std::int64_t whole = columns / V::lanes * V::lanes;
  for (std::int64_t n = 0; n < whole; n += V::lanes) {
    V::store_rounded(
        to + n * bytes_of(type), type,
        finish(y + n, bias != nullptr ? bias + n : nullptr, added != nullptr ? added + n * bytes_of(type) : nullptr));
  }
  if (whole < columns) {
    const auto rest = static_cast<std::size_t>(columns - whole);
    alignas(64) float y_rest[V::lanes] = {};
    alignas(64) float bias_rest[V::lanes] = {};
    alignas(64) std::uint8_t residual_rest[V::lanes * 4] = {};
    alignas(64) std::uint8_t out_rest[V::lanes * 4];
    __builtin_memcpy(y_rest, y + whole, rest * 4);
    if (bias != nullptr) __builtin_memcpy(bias_rest, bias + whole, rest * 4);
    if (added != nullptr) {
      __builtin_memcpy(residual_rest, added + whole * bytes_of(type), rest * static_cast<std::size_t>(bytes_of(type)));
    }
    V::store_rounded(
        out_rest, type,
        finish(y_rest, bias != nullptr ? bias_rest : nullptr, added != nullptr ? residual_rest : nullptr));
    __builtin_memcpy(to + whole * bytes_of(type), out_rest, rest * static_cast<std::size_t>(bytes_of(type)));
  }
}

}  // namespace
}  // namespace bittensor
