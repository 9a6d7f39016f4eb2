#pragma once

/// Operands that several operators share.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bittensor/isa.hpp"
#include "bittensor/linear.hpp"
#include "bittensor/prepare.hpp"
#include "tensors.hpp"

namespace bittensor::binding {

/// The kernels of the `isa` argument: an index into known_isas(), or -1 for this process's choice.
inline const KernelSet& kernels(std::int64_t isa) {
  static const KernelSet& chosen = kernels_for(choose_isa().isa);
  if (isa == -1) return chosen;
  const std::vector<Isa> known = known_isas();
  if (isa < 0 || isa >= static_cast<std::int64_t>(known.size())) refuse("isa: unknown index " + std::to_string(isa));
  return kernels_for(known[static_cast<std::size_t>(isa)]);
}

inline PreparedLayout layout_of(const Matrix& prepared, const char* name = "prepared") {
  if (prepared.dtype != Dtype::u8 || prepared.dimensions != 1) {
    refuse(std::string(name) + ": expected uint8 [bytes]");
  }
  return read_layout(prepared.data<std::uint8_t>(), prepared.columns);
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

/// A bias of any float type as float32.
class FloatBias {
 public:
  FloatBias(const std::optional<Tensor>& given, std::int64_t out_features, const char* name = "bias") {
    if (!given) return;
    const std::optional<FloatType> type = float_type_of(*given);
    if (!type) refuse(std::string(name) + ": expected float32, float16 or bfloat16");
    kept_.emplace(name, *given);
    if (kept_->dimensions != 1 || kept_->columns != out_features) {
      refuse(std::string(name) + ": expected [" + std::to_string(out_features) + "]");
    }
    if (*type == FloatType::f32) {
      values_ = kept_->data<float>();
    } else if (*type == FloatType::f16) {
      widen(kept_->data<torch::headeronly::Half>(), out_features);
    } else {
      widen(kept_->data<torch::headeronly::BFloat16>(), out_features);
    }
  }
  ~FloatBias() = default;
  FloatBias(const FloatBias&) = delete;
  FloatBias& operator=(const FloatBias&) = delete;

  const float* values() const { return values_; }

 private:
  template <class T>
  void widen(const T* values, std::int64_t count) {
    widened_.assign(values, values + count);
    values_ = widened_.data();
  }

  std::optional<Matrix> kept_;
  std::vector<float> widened_;
  const float* values_ = nullptr;
};

/// x, a prepared weight and the result of a linear: what every operator that computes one has in common.
struct LinearOperands {
  Matrix weight;
  FloatType type;
  Activations x;
  Linear product;

  /// Each row of x has `x_parts` times the columns of the weight.
  LinearOperands(const Tensor& given, const Tensor& prepared, std::int64_t out_features, std::int64_t x_parts = 1)
      : weight("prepared", prepared), type(checked_type(given)), x("x", given) {
    product.layout = layout_of(weight);
    if (product.layout.out_features != out_features) refuse("out_features: the prepared weight has another number");
    const std::int64_t columns = product.layout.in_features * x_parts;
    if (x.columns != columns) {
      refuse("x: expected " + std::to_string(columns) + " columns, got " + std::to_string(x.columns));
    }
    product.x = x.data<void>();
    product.float_type = type;
    product.x_row_bytes = x.row_stride * bytes_of(type);
    product.rows = x.rows;
    product.prepared = weight.data<std::uint8_t>();
  }

  Tensor multiply(bool float_mode, std::int64_t isa) {
    const Tensor out = new_matrix(x, product.layout.out_features, torch_dtype_of(type));
    product.out = out.data_ptr();
    (float_mode ? linear_float : linear_int8)(product, kernels(isa), torch_threads());
    return out;
  }

 private:
  static FloatType checked_type(const Tensor& given) {
    const std::optional<FloatType> type = float_type_of(given);
    if (!type) refuse("x: expected float32, float16 or bfloat16");
    return *type;
  }
};

}  // namespace bittensor::binding
