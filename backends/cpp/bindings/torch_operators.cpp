// The torch operators, registered through torch's stable ABI: one build serves every torch from 2.10 on.
//
// The operators refuse every argument that docs/numerics.md refuses, so that they are safe to call from anywhere; the
// Python adapter replaces their messages by those of bittensor.checks, which say more.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bittensor/codes.hpp"
#include "bittensor/embedding.hpp"
#include "bittensor/linear_gradient.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/prepare.hpp"
#include "operands.hpp"

namespace bittensor::binding {
namespace {

void check_bits(std::int64_t bits) {
  if (bits < 1 || bits > 8 || !is_code_width(static_cast<int>(bits))) {
    refuse("bits: expected one of 1, 2, 4, 8, got " + std::to_string(bits));
  }
}

void check_words(const char* name, const Matrix& words, std::int64_t columns, int bits) {
  if (words.dtype != Dtype::i64) refuse(std::string(name) + ": expected int64 words");
  if (columns < 0)
    refuse(std::string(name) + ": expected a count of codes of at least 0, got " + std::to_string(columns));
  // Compared by division: words_per_row could overflow on a hostile count.
  const std::int64_t per_word = codes_per_word(bits);
  const std::int64_t expected = columns / per_word + (columns % per_word != 0 ? 1 : 0);
  if (words.columns != expected) {
    refuse(
        std::string(name) + ": expected " + std::to_string(expected) + " words a row for " + std::to_string(columns) +
        " codes, got " + std::to_string(words.columns));
  }
}

int checked_code(const char* name, std::int64_t code, int bits) {
  if (code < 0 || code > max_code(bits)) {
    refuse(std::string(name) + ": expected a code of " + std::to_string(bits) + " bits, got " + std::to_string(code));
  }
  return static_cast<int>(code);
}

void check_codes(const char* name, const std::optional<CodeOutOfRange>& wrong, int bits) {
  if (!wrong) return;
  refuse(
      std::string(name) + ": expected codes of " + std::to_string(bits) + " bits, got " + std::to_string(wrong->code) +
      " in row " + std::to_string(wrong->row) + ", column " + std::to_string(wrong->column));
}

Tensor pack(const Tensor& codes, std::int64_t bits, std::int64_t isa) {
  check_bits(bits);
  const int width = static_cast<int>(bits);
  const Matrix matrix("codes", codes);
  if (matrix.dtype != Dtype::u8) refuse("codes: expected uint8");
  const Tensor words = new_matrix(matrix, words_per_row(matrix.columns, width), aoti_torch_dtype_int64());
  move_to_huge_pages(words.data_ptr(), words.numel() * std::int64_t{sizeof(std::uint64_t)});  // often a weight
  check_codes(
      "codes",
      bittensor::pack(
          matrix.data<std::uint8_t>(), matrix.rows, matrix.columns, width,
          static_cast<std::uint64_t*>(words.data_ptr()), kernels(isa), torch_threads()),
      width);
  return words;
}

Tensor unpack(const Tensor& words, std::int64_t columns, std::int64_t bits, std::int64_t isa) {
  check_bits(bits);
  const int width = static_cast<int>(bits);
  const Matrix matrix("words", words);
  check_words("words", matrix, columns, width);
  const Tensor codes = new_matrix(matrix, columns, aoti_torch_dtype_uint8());
  bittensor::unpack(
      matrix.data<std::uint64_t>(), matrix.rows, columns, width, static_cast<std::uint8_t*>(codes.data_ptr()),
      kernels(isa), torch_threads());
  return codes;
}

/// The bias as int32 and its largest magnitude.
class Bias {
 public:
  Bias(const std::optional<Tensor>& given, std::int64_t out_features) {
    if (!given) return;
    const Matrix bias("bias", *given);
    if (bias.dimensions != 1 || bias.columns != out_features) {
      refuse("bias: expected [" + std::to_string(out_features) + "]");
    }
    if (bias.dtype != Dtype::u8 && bias.dtype != Dtype::i32) refuse("bias: expected uint8 or int32");
    const auto count = static_cast<std::size_t>(out_features);
    if (count > few) many_.resize(count);
    values_ = count > few ? many_.data() : fixed_;
    if (bias.dtype == Dtype::u8) {
      std::copy_n(bias.data<std::uint8_t>(), count, values_);
    } else {
      std::copy_n(bias.data<std::int32_t>(), count, values_);
    }
    std::int32_t low = 0;
    std::int32_t high = 0;
    for (std::size_t n = 0; n < count; ++n) {
      low = std::min(low, values_[n]);
      high = std::max(high, values_[n]);
    }
    largest_ = std::max(-std::int64_t{low}, std::int64_t{high});
  }
  ~Bias() = default;
  Bias(const Bias&) = delete;
  Bias& operator=(const Bias&) = delete;

  const std::int32_t* values() const { return values_; }
  std::int64_t largest() const { return largest_; }

 private:
  static constexpr std::size_t few = 64;
  std::int32_t fixed_[few];
  std::vector<std::int32_t> many_;
  std::int32_t* values_ = nullptr;
  std::int64_t largest_ = 0;
};

/// The scale, kept alive and contiguous.
class Scale {
 public:
  Scale(const std::optional<Tensor>& given, std::int64_t out_features) {
    if (!given) return;
    if (dtype_of(*given) != Dtype::f32) refuse("scale: expected float32");
    if (!given->is_cpu()) refuse("scale: expected a tensor on the CPU");
    const std::int64_t dimensions = given->dim();
    count_ = given->numel();
    if (dimensions > 1 || (count_ != 1 && count_ != out_features)) {
      refuse("scale: expected [], [1] or [" + std::to_string(out_features) + "]");
    }
    memory_of("scale", *given);
    tensor_ = given->is_contiguous() ? *given : torch::stable::contiguous(*given);
    const float* data = values();
    if (!std::all_of(data, data + count_, [](float value) { return std::isfinite(value); })) {
      refuse("scale: expected finite values, got NaN or infinity");
    }
  }
  const float* values() const { return tensor_ ? static_cast<const float*>(tensor_->data_ptr()) : nullptr; }
  std::int64_t count() const { return count_; }

 private:
  std::optional<Tensor> tensor_;
  std::int64_t count_ = 0;
};

Tensor packed_matmul(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, std::int64_t bits,
    std::optional<std::int64_t> in_features, std::int64_t x_zero, std::int64_t weight_zero,
    const std::optional<Tensor>& scale, std::int64_t out_zero, bool sums, std::int64_t isa) {
  check_bits(bits);
  const int width = static_cast<int>(bits);
  const Matrix input("x", x);
  const Matrix packed("weight", weight);
  if (packed.dimensions != 2) refuse("weight: expected packed int64 [N, ceil(K/E)]");

  PackedMatmul product;
  product.bits = width;
  product.rows = input.rows;
  product.out_features = packed.rows;
  if (input.dtype == Dtype::u8) {
    if (in_features && *in_features != input.columns) {
      refuse("x: expected " + std::to_string(*in_features) + " codes a row, got " + std::to_string(input.columns));
    }
    product.in_features = input.columns;
    product.x_codes = input.data<std::uint8_t>();
  } else if (input.dtype == Dtype::i64) {
    if (!in_features) refuse("in_features: needed because x is packed (int64)");
    check_words("x", input, *in_features, width);
    product.in_features = *in_features;
    product.x_words = input.data<std::uint64_t>();
  } else {
    refuse("x: expected uint8 codes or packed int64 words");
  }
  check_words("weight", packed, product.in_features, width);
  product.weight = packed.data<std::uint64_t>();
  product.x_zero = checked_code("x_zero", x_zero, width);
  product.weight_zero = checked_code("weight_zero", weight_zero, width);
  product.out_zero = checked_code("out_zero", out_zero, width);

  const Bias bias_values(bias, product.out_features);
  const Scale scale_values(scale, product.out_features);
  product.bias = bias_values.values();
  product.scale = scale_values.values();
  product.scale_count = scale_values.count();
  if (scale && sums) refuse("scale: has no meaning with the accumulator as the result");
  if (!scale && product.out_zero != 0) refuse("out_zero: has no meaning without scale");
  // The first condition keeps the product below from overflowing itself.
  if (product.in_features > std::numeric_limits<std::int32_t>::max() ||
      largest_sum(product.in_features, width, product.x_zero, product.weight_zero, bias_values.largest()) >
          std::numeric_limits<std::int32_t>::max()) {
    refuse("accumulator: the sums may reach beyond int32; split in_features or use smaller codes");
  }

  static const std::int32_t i32 = aoti_torch_dtype_int32();
  static const std::int32_t i64 = aoti_torch_dtype_int64();
  const std::int64_t columns = sums ? product.out_features : words_per_row(product.out_features, width);
  const Tensor out = new_matrix(input, columns, sums ? i32 : i64);
  if (sums) {
    product.out_sums = static_cast<std::int32_t*>(out.data_ptr());
  } else {
    product.out_words = static_cast<std::uint64_t*>(out.data_ptr());
  }
  check_codes("x", bittensor::packed_matmul(product, kernels(isa), torch_threads()), width);
  return out;
}

Tensor prepare(
    const Tensor& words, const Tensor& scales, const std::optional<Tensor>& zeros, const std::optional<Tensor>& offsets,
    std::int64_t in_features, std::int64_t bits, std::int64_t group_size, std::int64_t isa) {
  check_bits(bits);
  const Matrix packed("words", words);
  check_words("words", packed, in_features, static_cast<int>(bits));
  const Matrix scale("scales", scales);
  const std::optional<FloatType> scale_type = float_type_of(scales);
  if (!scale_type) refuse("scales: expected float32, float16 or bfloat16");
  if (zeros && offsets) refuse("zeros, offsets: expected at most one of them");
  const PreparedLayout layout = {
      packed.rows, in_features,
      group_size,  static_cast<std::int32_t>(bits),
      *scale_type, zeros ? ZeroKind::integer : (offsets ? ZeroKind::offset : ZeroKind::symmetric)};
  check_layout(layout);
  const auto check_groups = [&](const char* name, const Matrix& matrix) {
    if (matrix.dimensions != 2 || matrix.rows != layout.out_features || matrix.columns != layout.groups()) {
      refuse(
          std::string(name) + ": expected [" + std::to_string(layout.out_features) + ", " +
          std::to_string(layout.groups()) + "]");
    }
  };
  if (packed.dimensions != 2) refuse("words: expected [N, ceil(K/E)]");
  check_groups("scales", scale);
  GroupQuantized weight{packed.data<std::uint64_t>(), scale.data<void>(), nullptr, nullptr};
  std::optional<Matrix> kept;  // keeps a contiguous copy alive
  if (zeros) {
    kept.emplace("zeros", *zeros);
    if (kept->dtype != Dtype::u8) refuse("zeros: expected uint8");
    check_groups("zeros", *kept);
    weight.zeros = kept->data<std::uint8_t>();
  }
  if (offsets) {
    kept.emplace("offsets", *offsets);
    if (float_type_of(*offsets) != scale_type) refuse("offsets: expected the dtype of scales");
    check_groups("offsets", *kept);
    weight.offsets = kept->data<void>();
  }
  const Tensor prepared = new_weight_memory(layout.bytes());
  bittensor::prepare(weight, layout, static_cast<std::uint8_t*>(prepared.data_ptr()), kernels(isa), torch_threads());
  return prepared;
}

/// Words, scales, zeros and offsets, of which those that the weight does not have are empty. The form is given, so that
/// the shapes of the results do not depend on the contents of `prepared`; it must be the one that `prepared` has.
std::tuple<Tensor, Tensor, Tensor, Tensor> restore(
    const Tensor& prepared, std::int64_t out_features, std::int64_t in_features, std::int64_t bits,
    std::int64_t group_size, std::int64_t zero, torch::headeronly::ScalarType scale_dtype, std::int64_t isa) {
  const Matrix blob("prepared", prepared);
  const PreparedLayout layout = layout_of(blob);
  if (layout.out_features != out_features || layout.in_features != in_features || layout.bits != bits ||
      layout.group_size != group_size || static_cast<std::int64_t>(layout.zero_kind) != zero ||
      scalar_type_of(layout.scale_type) != scale_dtype) {
    refuse("prepared: a weight of another form than the arguments say");
  }
  const std::int64_t rows = layout.out_features;
  const std::int32_t of_scales = torch_dtype_of(layout.scale_type);
  const bool has_zeros = layout.zero_kind == ZeroKind::integer;
  const bool has_offsets = layout.zero_kind == ZeroKind::offset;
  std::tuple<Tensor, Tensor, Tensor, Tensor> canonical{
      new_tensor(aoti_torch_dtype_int64(), rows, words_per_row(layout.in_features, layout.bits)),
      new_tensor(of_scales, rows, layout.groups()),
      has_zeros ? new_tensor(aoti_torch_dtype_uint8(), rows, layout.groups()) : new_tensor(aoti_torch_dtype_uint8(), 0),
      has_offsets ? new_tensor(of_scales, rows, layout.groups()) : new_tensor(of_scales, 0)};
  const auto& [words, scales, zeros, offsets] = canonical;
  const GroupQuantizedOutput weight = {
      static_cast<std::uint64_t*>(words.data_ptr()), scales.data_ptr(), static_cast<std::uint8_t*>(zeros.data_ptr()),
      offsets.data_ptr()};
  bittensor::restore(blob.data<std::uint8_t>(), layout, weight, kernels(isa), torch_threads());
  return canonical;
}

Tensor linear(
    const Tensor& x, const Tensor& prepared, std::int64_t out_features, const std::optional<Tensor>& bias,
    bool float_mode, std::int64_t activation, std::int64_t isa) {
  LinearOperands operands(x, prepared, out_features);
  if (activation < 0 || activation > 3) refuse("activation: unknown");
  operands.product.activation = static_cast<Activation>(activation);
  const FloatBias bias_values(bias, out_features);
  operands.product.bias = bias_values.values();
  return operands.multiply(float_mode, isa);
}

Tensor linear_input_grad(const Tensor& dy, const Tensor& prepared, std::int64_t in_features, std::int64_t isa) {
  const Matrix weight("prepared", prepared);
  const std::optional<FloatType> type = float_type_of(dy);
  if (!type) refuse("dy: expected float32, float16 or bfloat16");
  const Activations rows("dy", dy);
  LinearInputGrad gradient;
  gradient.layout = layout_of(weight);
  if (gradient.layout.in_features != in_features) refuse("in_features: the prepared weight has another number");
  if (rows.columns != gradient.layout.out_features) {
    refuse(
        "dy: expected " + std::to_string(gradient.layout.out_features) + " columns, got " +
        std::to_string(rows.columns));
  }
  gradient.dy = rows.data<void>();
  gradient.float_type = *type;
  gradient.dy_row_bytes = rows.row_stride * bytes_of(*type);
  gradient.rows = rows.rows;
  gradient.prepared = weight.data<std::uint8_t>();
  const Tensor out = new_matrix(rows, in_features, torch_dtype_of(*type));
  gradient.out = out.data_ptr();
  bittensor::linear_input_grad(gradient, kernels(isa), torch_threads());
  return out;
}

/// Indices of any shape, int64 or int32, one after the other.
class Indices {
 public:
  explicit Indices(const Tensor& given) : tensor_(defined("indices", given)), count_(given.numel()) {
    if (!given.is_cpu()) refuse("indices: expected a tensor on the CPU");
    const Dtype dtype = dtype_of(given);
    if (dtype != Dtype::i64 && dtype != Dtype::i32) refuse("indices: expected int64 or int32");
    const void* memory = memory_of("indices", given);
    if (!given.is_contiguous()) {
      tensor_ = torch::stable::contiguous(given);
      memory = tensor_.data_ptr();
    }
    if (dtype == Dtype::i64) {
      values_ = static_cast<const std::int64_t*>(memory);
    } else {
      const auto* narrow = static_cast<const std::int32_t*>(memory);
      widened_.assign(narrow, narrow + count_);
      values_ = widened_.data();
    }
  }
  ~Indices() = default;
  Indices(const Indices&) = delete;
  Indices& operator=(const Indices&) = delete;

  const std::int64_t* values() const { return values_; }
  std::int64_t count() const { return count_; }

  /// A new tensor of the shape of the indices, with a row of `columns` values for each.
  Tensor new_rows(std::int64_t columns, FloatType type) const {
    const std::int64_t* sizes = tensor_.sizes().data();
    std::vector<std::int64_t> shape(sizes, sizes + tensor_.dim());
    shape.push_back(columns);
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
      strides[i] = stride;
      stride *= std::max<std::int64_t>(shape[i], 1);
    }
    return allocate(
        torch_dtype_of(type), static_cast<std::int64_t>(shape.size()), shape.data(), strides.data(), count_ * columns);
  }

 private:
  Tensor tensor_;
  std::int64_t count_;
  std::vector<std::int64_t> widened_;
  const std::int64_t* values_;
};

Tensor embedding(
    const Tensor& indices, const Tensor& prepared, std::int64_t columns, torch::headeronly::ScalarType dtype,
    std::int64_t isa) {
  const Matrix weight("prepared", prepared);
  const Indices rows(indices);
  Embedding gather;
  gather.layout = layout_of(weight);
  if (gather.layout.in_features != columns) refuse("columns: the prepared weight has another number");
  const std::optional<FloatType> type = float_type_named(dtype);
  if (!type) refuse("dtype: expected float32, float16 or bfloat16");
  gather.indices = rows.values();
  gather.count = rows.count();
  gather.prepared = weight.data<std::uint8_t>();
  gather.float_type = *type;
  const Tensor out = rows.new_rows(columns, *type);
  gather.out = out.data_ptr();
  if (const std::optional<std::int64_t> wrong = bittensor::embedding(gather, kernels(isa), torch_threads())) {
    refuse(
        "indices: expected rows 0.." + std::to_string(gather.layout.out_features - 1) + ", got " +
        std::to_string(gather.indices[*wrong]));
  }
  return out;
}

}  // namespace
}  // namespace bittensor::binding

// Counts that may vary between calls of a compiled program are SymInt.
STABLE_TORCH_LIBRARY(bittensor_cpp, library) {
  library.def("pack(Tensor codes, int bits=4, int isa=-1) -> Tensor");
  library.def("unpack(Tensor words, SymInt columns, int bits=4, int isa=-1) -> Tensor");
  library.def(
      "packed_matmul(Tensor x, Tensor weight, Tensor? bias=None, int bits=4, SymInt? in_features=None, int x_zero=0, "
      "int weight_zero=0, Tensor? scale=None, int out_zero=0, bool sums=False, int isa=-1) -> Tensor");
  library.def(
      "prepare(Tensor words, Tensor scales, Tensor? zeros, Tensor? offsets, SymInt in_features, int bits, "
      "int group_size, int isa=-1) -> Tensor");
  library.def(
      "restore(Tensor prepared, SymInt out_features, SymInt in_features, int bits, int group_size, int zero, "
      "ScalarType scale_dtype, int isa=-1) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "linear(Tensor x, Tensor prepared, SymInt out_features, Tensor? bias=None, bool float_mode=False, "
      "int activation=0, int isa=-1) -> Tensor");
  // The same without a gradient. That of `linear` is a Python function, which torch would enter at each call.
  library.def(
      "linear_forward(Tensor x, Tensor prepared, SymInt out_features, Tensor? bias=None, bool float_mode=False, "
      "int activation=0, int isa=-1) -> Tensor");
  library.def("linear_input_grad(Tensor dy, Tensor prepared, SymInt in_features, int isa=-1) -> Tensor");
  library.def("embedding(Tensor indices, Tensor prepared, SymInt columns, ScalarType dtype=6, int isa=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bittensor_cpp, CPU, library) {
  library.impl("prepare", TORCH_BOX(&bittensor::binding::prepare));
  library.impl("restore", TORCH_BOX(&bittensor::binding::restore));
  library.impl("linear", TORCH_BOX(&bittensor::binding::linear));
  library.impl("linear_forward", TORCH_BOX(&bittensor::binding::linear));
  library.impl("linear_input_grad", TORCH_BOX(&bittensor::binding::linear_input_grad));
  library.impl("embedding", TORCH_BOX(&bittensor::binding::embedding));
  library.impl("pack", TORCH_BOX(&bittensor::binding::pack));
  library.impl("unpack", TORCH_BOX(&bittensor::binding::unpack));
  library.impl("packed_matmul", TORCH_BOX(&bittensor::binding::packed_matmul));
}
