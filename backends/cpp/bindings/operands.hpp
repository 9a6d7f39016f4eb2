#pragma once

/// Operands that several operators share.

#include <cstdint>
#include <string>
#include <vector>

#include "bittensor/isa.hpp"
#include "bittensor/prepare.hpp"
#include "tensors.hpp"

namespace bittensor::binding {

/// The kernels of the `isa` argument: an index into known_isas(), or -1 for this process's choice.
inline const KernelSet& kernels(std::int64_t isa) {
  static const KernelSet& chosen = bittensor::kernels_for(bittensor::choose_isa().isa);
  if (isa == -1) return chosen;
  const std::vector<bittensor::Isa> known = bittensor::known_isas();
  if (isa < 0 || isa >= static_cast<std::int64_t>(known.size())) refuse("isa: unknown index " + std::to_string(isa));
  return bittensor::kernels_for(known[static_cast<std::size_t>(isa)]);
}

inline bittensor::PreparedLayout layout_of(const Matrix& prepared) {
  if (prepared.dtype != Dtype::u8 || prepared.dimensions != 1) refuse("prepared: expected uint8 [bytes]");
  return bittensor::read_layout(prepared.data<std::uint8_t>(), prepared.columns);
}

/// Rows of activations: their values follow each other, the rows may have any distance.
struct Activations : Matrix {
  std::int64_t row_stride;  // values

  Activations(const char* name, const Tensor& given) : Matrix(name, given, &has_strided_rows), row_stride(columns) {
    if (dimensions < 2 || tensor.is_contiguous()) return;
    // The leading dimension that has more than one index and varies fastest.
    for (std::int64_t i = dimensions - 1; i-- > 0;) {
      if (sizes[i] > 1) {
        row_stride = tensor.strides()[i];
        break;
      }
    }
  }

  /// Whether one distance leads from each row to the next, through all leading dimensions.
  static bool has_strided_rows(const Tensor& tensor) {
    const std::int64_t dimensions = tensor.dim();
    const std::int64_t* sizes = tensor.sizes().data();
    const std::int64_t* strides = tensor.strides().data();
    if (sizes[dimensions - 1] > 1 && strides[dimensions - 1] != 1) return false;
    std::int64_t next = -1;
    for (std::int64_t i = dimensions - 1; i-- > 0;) {
      if (sizes[i] == 1) continue;
      if (next >= 0 && strides[i] != next) return false;
      next = strides[i] * sizes[i];
    }
    return true;
  }
};

}  // namespace bittensor::binding
