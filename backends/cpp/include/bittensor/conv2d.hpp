#pragma once

/// The group-quantized convolution (docs/numerics.md, section 10).

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/group_quantized.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/parallel.hpp"
#include "bittensor/patches.hpp"

namespace bittensor {

/// Operands of `conv2d`. Row n of the weight belongs to output channel n, its columns to the places and channels of a
/// patch of that channel's group.
struct Conv2d {
  const void* images = nullptr;  // [count, height, width, channels] of float_type, without gaps
  std::int64_t count = 0;
  Patches patches;                        // of all channels
  std::int64_t groups = 1;                // of channels; they divide the channels and the rows of the weight
  FloatType float_type = FloatType::f32;  // of images and out
  const std::uint8_t* prepared = nullptr;
  PreparedLayout layout{};      // as read_layout gives it
  const float* bias = nullptr;  // [out_features], or null
  Activation activation = Activation::none;
  void* out = nullptr;  // [count, out_height, out_width, out_features] of float_type, without gaps
};

/// The bits of `linear_int8` of the patches.
BITTENSOR_API void conv2d_int8(const Conv2d& convolution, const KernelSet& kernels, const ParallelFor& parallel = {});

/// Within the bounds of `linear_float` of the patches; where groups have few channels it has other bits than that. They
/// are the same on every instruction set and for every number of threads.
BITTENSOR_API void conv2d_float(const Conv2d& convolution, const KernelSet& kernels, const ParallelFor& parallel = {});

}  // namespace bittensor
