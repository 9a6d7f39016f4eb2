#pragma once

/// Prepared weights, and values of the float types, as operands.

#include <array>
#include <cstdint>

#include "bittensor/isa.hpp"
#include "bittensor/prepare.hpp"
#include "cases.hpp"

/// Widths of prepared weights.
inline constexpr std::array linear_widths = {2, 4, 8};
inline constexpr std::array float_types = {
    bittensor::FloatType::f32, bittensor::FloatType::f16, bittensor::FloatType::bf16};

const char* name_of(bittensor::FloatType type);
const char* name_of(bittensor::ZeroKind kind);

/// Values of a float type whose magnitudes lie between 0.5 and 1.
void* values_of(Operands& operands, bittensor::FloatType type, std::int64_t count);

bittensor::PreparedLayout layout_of(
    std::int64_t out_features, std::int64_t in_features, std::int64_t group_size, int bits, bittensor::ZeroKind kind);

/// A prepared weight with random content.
const std::uint8_t* weight_of(
    Operands& operands, const bittensor::PreparedLayout& layout, const bittensor::KernelSet& kernels);
