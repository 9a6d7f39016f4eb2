// Prepared weights, and values of the float types, as operands.

#include "weight_operands.hpp"

#include "bittensor/codes.hpp"

using bittensor::FloatType;
using bittensor::KernelSet;
using bittensor::PreparedLayout;
using bittensor::ZeroKind;

const char* name_of(FloatType type) {
  return type == FloatType::f32 ? "f32" : type == FloatType::f16 ? "f16" : "bf16";
}

const char* name_of(ZeroKind kind) {
  return kind == ZeroKind::symmetric ? "symmetric" : kind == ZeroKind::integer ? "integer" : "offset";
}

void* values_of(Operands& operands, FloatType type, std::int64_t count) {
  if (type == FloatType::f32) return operands.floats(count);
  const std::int64_t half = type == FloatType::f16 ? 0x3800 : 0x3F00;
  const std::int64_t mantissa = type == FloatType::f16 ? 0x3FF : 0x7F;
  auto* bits = operands.integers<std::uint16_t>(count, half, half + mantissa);
  for (std::int64_t i = 0; i < count; i += 2) bits[i] = static_cast<std::uint16_t>(bits[i] | 0x8000);
  return bits;
}

PreparedLayout layout_of(
    std::int64_t out_features, std::int64_t in_features, std::int64_t group_size, int bits, ZeroKind kind) {
  return {out_features, in_features, group_size, bits, FloatType::f16, kind};
}

const std::uint8_t* weight_of(Operands& operands, const PreparedLayout& layout, const KernelSet& kernels) {
  const std::int64_t groups = layout.out_features * layout.groups();
  const bittensor::GroupQuantized weight = {
      operands.words(layout.out_features * bittensor::words_per_row(layout.in_features, layout.bits)),
      values_of(operands, layout.scale_type, groups),
      operands.integers<std::uint8_t>(groups, 0, bittensor::max_code(layout.bits)),
      values_of(operands, layout.scale_type, groups)};
  auto* prepared = operands.array<std::uint8_t>(layout.bytes());
  bittensor::prepare(weight, layout, prepared, kernels);
  return prepared;
}
