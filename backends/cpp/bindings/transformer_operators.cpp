// The operators of language models beside the linear: its fusions, and attention over a cache.

#include <cstdint>
#include <optional>
#include <string>

#include "bittensor/attention.hpp"
#include "operands.hpp"

namespace bittensor::binding {
namespace {

Tensor fused_linear(
    const Tensor& x, const Tensor& prepared, std::int64_t out_features, const std::optional<Tensor>& norm_weight,
    double norm_epsilon, bool gated, const std::optional<Tensor>& residual, bool float_mode, std::int64_t isa) {
  LinearOperands operands(x, prepared, out_features, gated ? 2 : 1);
  bittensor::Linear& product = operands.product;
  std::optional<Matrix> norm;  // keeps a contiguous copy alive
  if (norm_weight) {
    if (gated) refuse("norm_weight, gated: expected at most one of them");
    norm.emplace("norm_weight", *norm_weight);
    if (norm->dtype != Dtype::f32 || norm->dimensions != 1 || norm->columns != operands.x.columns) {
      refuse("norm_weight: expected float32 [" + std::to_string(operands.x.columns) + "]");
    }
    product.prologue = bittensor::Prologue::rms_norm;
    product.norm_weight = norm->data<float>();
    product.norm_epsilon = static_cast<float>(norm_epsilon);
  } else if (gated) {
    product.prologue = bittensor::Prologue::swiglu;
  }
  std::optional<Matrix> added;
  if (residual) {
    added.emplace("residual", *residual);
    if (float_type_of(*residual) != operands.type || added->rows != product.rows || added->columns != out_features) {
      refuse(
          "residual: expected " + std::to_string(product.rows) + " rows of " + std::to_string(out_features) +
          " values of the dtype of x");
    }
    product.residual = added->data<void>();
  }
  return operands.multiply(float_mode, isa);
}

/// A part of the cache, which is written where it lies.
float* cache_of(const char* name, const Tensor& cache, std::int64_t dimensions) {
  if (!cache.defined() || dtype_of(cache) != Dtype::f32 || cache.dim() != dimensions || !cache.is_contiguous() ||
      !cache.is_cpu()) {
    refuse(
        std::string(name) + ": expected contiguous float32 on the CPU with " + std::to_string(dimensions) +
        " dimensions");
  }
  return static_cast<float*>(cache.data_ptr());
}

Tensor attend(
    const Tensor& projections, const Tensor& cos, const Tensor& sin, const Tensor& keys, const Tensor& values,
    std::int64_t position, std::int64_t heads, std::int64_t isa) {
  const Activations rows("projections", projections);
  const Matrix cosines("cos", cos);
  const Matrix sines("sin", sin);
  bittensor::Attention attention;
  attention.keys = cache_of("keys", keys, 4);
  attention.values = cache_of("values", values, 3);
  const std::int64_t* key_sizes = keys.sizes().data();
  const std::int64_t* value_sizes = values.sizes().data();
  attention.key_value_heads = key_sizes[0];
  attention.head_size = key_sizes[2];
  attention.capacity = value_sizes[1];
  attention.heads = heads;
  attention.position = position;
  attention.tokens = rows.rows;
  const std::int64_t size = attention.head_size;
  const auto up_to = [](std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; };
  if (size < 2 || size % 2 != 0 || attention.key_value_heads < 1 || key_sizes[3] != bittensor::key_panel ||
      key_sizes[1] != up_to(attention.capacity, bittensor::key_panel) || value_sizes[0] != attention.key_value_heads ||
      value_sizes[2] != up_to(size, bittensor::value_unit) * bittensor::value_unit) {
    refuse(
        "keys, values: expected [heads, ceil(capacity / 64), head_size, 64] and [heads, capacity, head_size up to a "
        "multiple of 16], head_size even");
  }
  if (heads < 1 || heads > (std::int64_t{1} << 20) || heads % attention.key_value_heads != 0) {
    refuse("heads: expected a multiple of the heads of the cache, got " + std::to_string(heads));
  }
  if (rows.dtype != Dtype::f32 || rows.dimensions != 2 || rows.rows < 1 ||
      rows.columns != (heads + 2 * attention.key_value_heads) * size) {
    refuse(
        "projections: expected float32 [T, " + std::to_string((heads + 2 * attention.key_value_heads) * size) +
        "] with at least one token");
  }
  for (const Matrix* angles : {&cosines, &sines}) {
    if (angles->dtype != Dtype::f32 || angles->dimensions != 2 || angles->rows != rows.rows ||
        angles->columns != size) {
      refuse("cos, sin: expected float32 [T, head_size]");
    }
  }
  if (position < 0 || position > attention.capacity - rows.rows) {
    refuse(
        "position: " + std::to_string(rows.rows) + " tokens from " + std::to_string(position) +
        " on do not fit a cache of " + std::to_string(attention.capacity));
  }
  attention.projections = rows.data<float>();
  attention.projection_stride = rows.row_stride;
  attention.cos = cosines.data<float>();
  attention.sin = sines.data<float>();
  const Tensor out = new_matrix(rows, heads * size, aoti_torch_dtype_float32());
  attention.out = static_cast<float*>(out.data_ptr());
  bittensor::attend(attention, kernels(isa), torch_threads());
  return out;
}

}  // namespace
}  // namespace bittensor::binding

STABLE_TORCH_LIBRARY_FRAGMENT(bittensor_cpp, library) {
  library.def(
      "fused_linear(Tensor x, Tensor prepared, SymInt out_features, Tensor? norm_weight=None, float norm_epsilon=0.0, "
      "bool gated=False, Tensor? residual=None, bool float_mode=False, int isa=-1) -> Tensor");
  library.def(
      "attend(Tensor projections, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, SymInt position, "
      "int heads, int isa=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bittensor_cpp, CPU, library) {
  library.impl("fused_linear", TORCH_BOX(&bittensor::binding::fused_linear));
  library.impl("attend", TORCH_BOX(&bittensor::binding::attend));
}
