// The operators of transformers beside the linear: its fusions, the feed-forward network, attention over a cache and of
// whole sequences, and the layers of a decoder.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bittensor/attention.hpp"
#include "bittensor/decoder.hpp"
#include "operands.hpp"

namespace bittensor::binding {
namespace {

Tensor fused_linear(
    const Tensor& x, const Tensor& prepared, std::int64_t out_features, const std::optional<Tensor>& norm_weight,
    double norm_epsilon, bool gated, const std::optional<Tensor>& residual, bool float_mode, std::int64_t isa) {
  LinearOperands operands(x, prepared, out_features, gated ? 2 : 1);
  Linear& product = operands.product;
  std::optional<Matrix> norm;  // keeps a contiguous copy alive
  if (norm_weight) {
    if (gated) refuse("norm_weight, gated: expected at most one of them");
    norm.emplace("norm_weight", *norm_weight);
    if (norm->dtype != Dtype::f32 || norm->dimensions != 1 || norm->columns != operands.x.columns) {
      refuse("norm_weight: expected float32 [" + std::to_string(operands.x.columns) + "]");
    }
    product.prologue = Prologue::rms_norm;
    product.norm_weight = norm->data<float>();
    product.norm_epsilon = static_cast<float>(norm_epsilon);
  } else if (gated) {
    product.prologue = Prologue::swiglu;
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

Tensor feed_forward(
    const Tensor& x, const Tensor& up, const std::optional<Tensor>& up_bias, const Tensor& down,
    std::int64_t out_features, const std::optional<Tensor>& down_bias, bool float_mode, std::int64_t activation,
    std::int64_t isa) {
  const PreparedLayout up_layout = layout_of(Matrix("up", up), "up");
  LinearOperands first(x, up, up_layout.out_features);
  if (activation < 0 || activation > 3) refuse("activation: unknown");
  first.product.activation = static_cast<Activation>(activation);
  const FloatBias first_bias(up_bias, up_layout.out_features, "up_bias");
  first.product.bias = first_bias.values();
  const Matrix down_blob("down", down);
  const PreparedLayout down_layout = layout_of(down_blob, "down");
  if (down_layout.in_features != up_layout.out_features) {
    refuse(
        "down: expected a weight of " + std::to_string(up_layout.out_features) + " columns, as up has rows, got " +
        std::to_string(down_layout.in_features));
  }
  if (down_layout.out_features != out_features) refuse("out_features: the prepared weight has another number");
  const FloatBias second_bias(down_bias, out_features, "down_bias");
  // Values of other dtypes than float32 are rounded in between.
  if (first.type != FloatType::f32 || first.product.rows == 0 || !joins_in_mlp(up_layout, down_layout)) {
    LinearOperands second(first.multiply(float_mode, isa), down, out_features);
    second.product.bias = second_bias.values();
    return second.multiply(float_mode, isa);
  }
  Linear second;
  second.rows = first.product.rows;
  second.prepared = down_blob.data<std::uint8_t>();
  second.layout = down_layout;
  second.bias = second_bias.values();
  const Tensor out = new_matrix(first.x, out_features, torch_dtype_of(first.type));
  second.out = out.data_ptr();
  (float_mode ? mlp_float : mlp_int8)(first.product, second, kernels(isa), torch_threads());
  return out;
}

/// A part of the cache, which is written where it lies.
float* cache_of(const char* name, const Tensor& cache, std::int64_t dimensions) {
  if (!cache.defined() || dtype_of(cache) != Dtype::f32 || cache.dim() != dimensions || !cache.is_contiguous() ||
      !cache.is_cpu()) {
    refuse(
        std::string(name) + ": expected contiguous float32 on the CPU with " + std::to_string(dimensions) +
        " dimensions");
  }
  return static_cast<float*>(memory_of(name, cache));
}

/// An attention of `tokens` tokens without its projections and its result.
struct AttentionOperands {
  Matrix cosines;
  Matrix sines;
  Attention attention;

  /// `layers`: the number that the cache must have, in a leading dimension; null: it has no such dimension.
  AttentionOperands(
      std::int64_t tokens, const Tensor& cos, const Tensor& sin, const Tensor& keys, const Tensor& values,
      std::int64_t position, std::int64_t heads, const std::int64_t* layers = nullptr)
      : cosines("cos", cos), sines("sin", sin) {
    const std::int64_t leading = layers == nullptr ? 0 : 1;
    attention.keys = cache_of("keys", keys, leading + 4);
    attention.values = cache_of("values", values, leading + 3);
    const std::int64_t* key_sizes = keys.sizes().data();
    const std::int64_t* value_sizes = values.sizes().data();
    if (layers != nullptr && (*key_sizes != *layers || *value_sizes != *layers)) {
      refuse("keys, values: expected " + std::to_string(*layers) + " layers");
    }
    key_sizes += leading;
    value_sizes += leading;
    attention.key_value_heads = key_sizes[0];
    attention.head_size = key_sizes[2];
    attention.capacity = value_sizes[1];
    attention.heads = heads;
    attention.position = position;
    attention.tokens = tokens;
    const std::int64_t size = attention.head_size;
    const auto up_to = [](std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit; };
    if (size < 2 || size % 2 != 0 || attention.key_value_heads < 1 || key_sizes[3] != key_panel ||
        key_sizes[1] != up_to(attention.capacity, key_panel) || value_sizes[0] != attention.key_value_heads ||
        value_sizes[2] != up_to(size, value_unit) * value_unit) {
      refuse(
          "keys, values: expected [heads, ceil(capacity / 64), head_size, 64] and [heads, capacity, head_size up to a "
          "multiple of 16], head_size even");
    }
    if (heads < 1 || heads > (std::int64_t{1} << 20) || heads % attention.key_value_heads != 0) {
      refuse("heads: expected a multiple of the heads of the cache, got " + std::to_string(heads));
    }
    for (const Matrix* angles : {&cosines, &sines}) {
      if (angles->dtype != Dtype::f32 || angles->dimensions != 2 || angles->rows != tokens || angles->columns != size) {
        refuse("cos, sin: expected float32 [T, head_size]");
      }
    }
    if (position < 0 || position > attention.capacity - tokens) {
      refuse(
          "position: " + std::to_string(tokens) + " tokens from " + std::to_string(position) +
          " on do not fit a cache of " + std::to_string(attention.capacity));
    }
    attention.cos = cosines.data<float>();
    attention.sin = sines.data<float>();
  }

  /// Columns of queries, keys and values.
  std::int64_t projected() const { return (attention.heads + 2 * attention.key_value_heads) * attention.head_size; }
};

Tensor attend(
    const Tensor& projections, const Tensor& cos, const Tensor& sin, const Tensor& keys, const Tensor& values,
    std::int64_t position, std::int64_t heads, std::int64_t isa) {
  const Activations rows("projections", projections);
  if (rows.dtype != Dtype::f32 || rows.dimensions != 2 || rows.rows < 1) {
    refuse("projections: expected float32 [T, columns] with at least one token");
  }
  AttentionOperands operands(rows.rows, cos, sin, keys, values, position, heads);
  Attention& attention = operands.attention;
  if (rows.columns != operands.projected()) {
    refuse("projections: expected float32 [T, " + std::to_string(operands.projected()) + "]");
  }
  attention.projections = rows.data<float>();
  attention.projection_stride = rows.row_stride;
  const Tensor out = new_matrix(rows, heads * attention.head_size, aoti_torch_dtype_float32());
  attention.out = static_cast<float*>(out.data_ptr());
  bittensor::attend(attention, kernels(isa), torch_threads());
  return out;
}

/// Vectors of all heads of all tokens; copied unless the values of each follow each other.
struct HeadTensor : Matrix {
  HeadVectors vectors;

  HeadTensor(const char* name, const Tensor& given) : Matrix(name, given, &has_contiguous_rows) {
    if (dtype != Dtype::f32 || dimensions != 4) refuse(std::string(name) + ": expected float32 [B, heads, T, size]");
    const std::int64_t* strides = tensor.strides().data();
    vectors = {data<float>(), strides[0], strides[1], strides[2]};
  }

  static bool has_contiguous_rows(const Tensor& tensor) {
    const std::int64_t last = tensor.dim() - 1;
    return tensor.sizes()[last] == 1 || tensor.strides()[last] == 1;
  }
};

Tensor attend_bidirectional(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& key_mask, double scale,
    std::int64_t isa) {
  const HeadTensor queries("query", query);
  const HeadTensor keys("key", key);
  const HeadTensor values("value", value);
  BidirectionalAttention attention;
  attention.query = queries.vectors;
  attention.key = keys.vectors;
  attention.value = values.vectors;
  attention.scale = static_cast<float>(scale);
  attention.sequences = queries.sizes[0];
  attention.heads = queries.sizes[1];
  attention.queries = queries.sizes[2];
  attention.head_size = queries.sizes[3];
  attention.key_value_heads = keys.sizes[1];
  attention.keys = keys.sizes[2];
  if (attention.heads < 1 || attention.head_size < 1)
    refuse("query: expected at least one head, of at least one value");
  if (keys.sizes[0] != attention.sequences || keys.sizes[3] != attention.head_size || attention.key_value_heads < 1 ||
      attention.heads % attention.key_value_heads != 0) {
    refuse("key: expected [B, heads, T, size] with B and size of the query, and heads that divide its heads");
  }
  for (std::int64_t i = 0; i < 4; ++i) {
    if (values.sizes[i] != keys.sizes[i]) refuse("value: expected the shape of the key");
  }
  std::optional<Matrix> mask;  // keeps a contiguous copy alive
  if (key_mask) {
    mask.emplace("key_mask", *key_mask);
    if (mask->dtype != Dtype::boolean || mask->dimensions != 2 || mask->rows != attention.sequences ||
        mask->columns != attention.keys) {
      refuse(
          "key_mask: expected bool [" + std::to_string(attention.sequences) + ", " + std::to_string(attention.keys) +
          "]");
    }
    attention.key_mask = mask->data<std::uint8_t>();
  }
  const std::int64_t columns = attention.heads * attention.head_size;
  const std::int64_t sizes[3] = {attention.sequences, attention.queries, columns};
  const std::int64_t strides[3] = {std::max<std::int64_t>(attention.queries, 1) * columns, columns, 1};
  const Tensor out =
      allocate(aoti_torch_dtype_float32(), 3, sizes, strides, attention.sequences * attention.queries * columns);
  attention.out = static_cast<float*>(out.data_ptr());
  bittensor::attend_bidirectional(attention, kernels(isa), torch_threads());
  return out;
}

/// Weights of a decoder's layers: query_key_value, output, gate_up and down of the first, of the second, and so on.
class DecoderWeights {
 public:
  explicit DecoderWeights(const std::vector<Tensor>& weights) {
    blobs_.reserve(weights.size());
    for (const Tensor& weight : weights) blobs_.emplace_back("weights", weight);
  }

  std::vector<DecoderLayer> layers(
      const float* norms, std::int64_t width, const Attention& attention, std::int64_t projected) const {
    std::vector<DecoderLayer> found(blobs_.size() / 4);
    const std::int64_t mixed = attention.heads * attention.head_size;
    for (std::size_t i = 0; i < found.size(); ++i) {
      DecoderLayer& layer = found[i];
      layer.attention_norm = norms + static_cast<std::int64_t>(2 * i) * width;
      layer.mlp_norm = layer.attention_norm + width;
      layer.query_key_value = matrix(4 * i, "query_key_value", projected, width);
      layer.output = matrix(4 * i + 1, "output", width, mixed);
      layer.gate_up = matrix(4 * i + 2, "gate_up", -1, width);
      if (layer.gate_up.layout.out_features % 2 != 0) refuse("gate_up: expected an even number of rows");
      layer.down = matrix(4 * i + 3, "down", width, layer.gate_up.layout.out_features / 2);
    }
    return found;
  }

 private:
  /// `out_features` -1: any.
  PreparedMatrix matrix(
      std::size_t index, const char* name, std::int64_t out_features, std::int64_t in_features) const {
    const Matrix& blob = blobs_[index];
    PreparedMatrix found{blob.data<std::uint8_t>(), layout_of(blob)};
    if (found.layout.in_features != in_features || (out_features >= 0 && found.layout.out_features != out_features)) {
      const std::string rows = out_features < 0 ? "any" : std::to_string(out_features);
      refuse(
          std::string(name) + ": expected a weight [" + rows + ", " + std::to_string(in_features) + "], got [" +
          std::to_string(found.layout.out_features) + ", " + std::to_string(found.layout.in_features) + "]");
    }
    return found;
  }

  std::vector<Matrix> blobs_;
};

Tensor decoder_layers(
    const Tensor& x, const Tensor& norms, const std::vector<Tensor>& weights, double norm_epsilon, const Tensor& cos,
    const Tensor& sin, const Tensor& keys, const Tensor& values, std::int64_t position, std::int64_t heads,
    bool float_mode, std::int64_t isa) {
  const Activations rows("x", x);
  if (rows.dtype != Dtype::f32 || rows.dimensions != 2 || rows.rows < 1 || rows.columns < 1) {
    refuse("x: expected float32 [T, width] with at least one token");
  }
  if (weights.size() % 4 != 0) refuse("weights: expected four for each layer");
  const auto count = static_cast<std::int64_t>(weights.size() / 4);
  const Matrix factors("norms", norms);
  if (factors.dtype != Dtype::f32 || factors.dimensions != 3 || factors.sizes[0] != count || factors.sizes[1] != 2 ||
      factors.columns != rows.columns) {
    refuse("norms: expected float32 [layers, 2, width]");
  }
  const AttentionOperands operands(rows.rows, cos, sin, keys, values, position, heads, &count);
  const DecoderWeights blobs(weights);
  const std::vector<DecoderLayer> layers =
      blobs.layers(factors.data<float>(), rows.columns, operands.attention, operands.projected());
  Decoder decoder;
  decoder.layers = layers.data();
  decoder.layer_count = count;
  decoder.norm_epsilon = static_cast<float>(norm_epsilon);
  decoder.float_mode = float_mode;
  decoder.width = rows.columns;
  decoder.x = rows.data<float>();
  decoder.x_stride = rows.row_stride;
  decoder.attention = operands.attention;
  const Tensor out = new_matrix(rows, rows.columns, aoti_torch_dtype_float32());
  decoder.out = static_cast<float*>(out.data_ptr());
  decode(decoder, kernels(isa), torch_threads());
  return out;
}

}  // namespace
}  // namespace bittensor::binding

STABLE_TORCH_LIBRARY_FRAGMENT(bittensor_cpp, library) {
  library.def(
      "fused_linear(Tensor x, Tensor prepared, SymInt out_features, Tensor? norm_weight=None, float norm_epsilon=0.0, "
      "bool gated=False, Tensor? residual=None, bool float_mode=False, int isa=-1) -> Tensor");
  library.def(
      "feed_forward(Tensor x, Tensor up, Tensor? up_bias, Tensor down, SymInt out_features, Tensor? down_bias, "
      "bool float_mode=False, int activation=0, int isa=-1) -> Tensor");
  library.def(
      "attend(Tensor projections, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, SymInt position, "
      "int heads, int isa=-1) -> Tensor");
  library.def(
      "attend_bidirectional(Tensor query, Tensor key, Tensor value, Tensor? key_mask, float scale, int isa=-1) "
      "-> Tensor");
  library.def(
      "decoder_layers(Tensor x, Tensor norms, Tensor[] weights, float norm_epsilon, Tensor cos, Tensor sin, "
      "Tensor(a!) keys, Tensor(b!) values, SymInt position, int heads, bool float_mode=False, int isa=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bittensor_cpp, CPU, library) {
  library.impl("fused_linear", TORCH_BOX(&bittensor::binding::fused_linear));
  library.impl("feed_forward", TORCH_BOX(&bittensor::binding::feed_forward));
  library.impl("attend", TORCH_BOX(&bittensor::binding::attend));
  library.impl("attend_bidirectional", TORCH_BOX(&bittensor::binding::attend_bidirectional));
  library.impl("decoder_layers", TORCH_BOX(&bittensor::binding::decoder_layers));
}
