// The Python module bittensor_cpp._native: CPU features, the kernel table, every kernel by name on plain buffers, and
// the limits of the machine. Nothing here knows torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/limits.hpp"
#include "bittensor/prepare.hpp"

namespace py = pybind11;

namespace {

using bittensor::KernelEntry;
using bittensor::KernelKind;

/// A kernel of the table that this machine can run.
KernelEntry find_kernel(const std::string& name, KernelKind kind) {
  for (const KernelEntry& entry : bittensor::kernel_table()) {
    if (entry.name != name) continue;
    if (entry.kind != kind) throw std::invalid_argument("kernel '" + name + "' is of another kind");
    if (!entry.supported) throw std::invalid_argument("kernel '" + name + "' cannot run on this machine");
    return entry;
  }
  throw std::invalid_argument("unknown kernel '" + name + "'; kernel_table() lists them");
}

const bittensor::CodeKernels& code_kernels(const KernelEntry& entry) {
  return bittensor::kernels_for(entry.isa).for_bits(entry.bits);
}

/// A flat view of a buffer that holds at least `count` values of T.
template <class T>
T* view(const char* name, const py::buffer& buffer, std::int64_t count) {
  const py::buffer_info info = buffer.request(!std::is_const_v<T>);
  const auto bytes = static_cast<std::int64_t>(info.size * info.itemsize);
  if (count < 0 || bytes < count * static_cast<std::int64_t>(sizeof(T))) {
    throw std::invalid_argument(
        std::string(name) + ": expected at least " + std::to_string(count) + " values of " + std::to_string(sizeof(T)) +
        " bytes, got " + std::to_string(bytes) + " bytes");
  }
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
    throw std::invalid_argument(std::string(name) + ": expected a contiguous buffer");
  return static_cast<T*>(info.ptr);
}

std::int64_t plane_bytes(std::int64_t columns, int bits) {
  const std::int64_t words = bittensor::words_per_row(columns, bits);
  return (words * 8 + bittensor::block_bytes - 1) / bittensor::block_bytes * bittensor::block_bytes * (8 / bits);
}

int pack_row(const std::string& kernel, const py::buffer& codes, std::int64_t columns, const py::buffer& words) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::pack_row);
  return code_kernels(entry).pack_row(
      view<const std::uint8_t>("codes", codes, columns), columns,
      view<std::uint64_t>("words", words, bittensor::words_per_row(columns, entry.bits)));
}

void unpack_row(const std::string& kernel, const py::buffer& words, std::int64_t columns, const py::buffer& codes) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::unpack_row);
  code_kernels(entry).unpack_row(
      view<const std::uint64_t>("words", words, bittensor::words_per_row(columns, entry.bits)), columns,
      view<std::uint8_t>("codes", codes, columns));
}

int expand_planes(
    const std::string& kernel, const py::buffer& words, std::int64_t columns, int shift, const py::buffer& planes) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::expand_planes);
  return code_kernels(entry).expand_planes(
      view<const std::uint64_t>("words", words, bittensor::words_per_row(columns, entry.bits)), columns, shift,
      view<std::int8_t>("planes", planes, plane_bytes(columns, entry.bits)));
}

bittensor::WordFetch word_fetch_named(const std::string& name) {
  using bittensor::WordFetch;
  if (name == "none") return WordFetch::none;
  if (name == "by_tiles") return WordFetch::by_tiles;
  if (name == "in_order") return WordFetch::in_order;
  throw std::invalid_argument("fetch: expected none, by_tiles or in_order, got " + name);
}

void integer_dot(
    const std::string& kernel, const py::buffer& planes, std::int64_t plane_stride, std::int64_t rows,
    const py::buffer& words, std::int64_t columns, std::int64_t in_features, const py::buffer& acc,
    const std::string& fetch) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::integer_dot);
  if (rows < 1 || columns < 1 || columns > bittensor::block_columns) {
    throw std::invalid_argument("rows: expected at least 1; columns: expected 1..64");
  }
  if (plane_stride < plane_bytes(in_features, entry.bits)) {
    throw std::invalid_argument("plane_stride: shorter than the planes of a row");
  }
  bittensor::IntegerDotBlock block{};
  block.row_words = bittensor::words_per_row(in_features, entry.bits);
  block.word_stride = block.row_words;
  block.plane_stride = plane_stride;
  block.rows = rows;
  block.columns = columns;
  block.fetch = word_fetch_named(fetch);
  block.planes =
      view<const std::int8_t>("planes", planes, (rows - 1) * plane_stride + plane_bytes(in_features, entry.bits));
  block.words = view<const std::uint64_t>("words", words, columns * block.row_words);
  block.acc = view<std::int32_t>("acc", acc, rows * bittensor::block_columns);
  code_kernels(entry).integer_dot(block);
}

void store_codes(
    const std::string& kernel, const py::buffer& acc, const py::buffer& column_add, int row_add,
    const std::optional<py::buffer>& scale, int out_zero, std::int64_t columns, const py::buffer& words) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_codes);
  if (columns < 0 || columns > bittensor::block_columns) throw std::invalid_argument("columns: expected 0..64");
  const bittensor::CodeEpilogue row = {
      view<const std::int32_t>("acc", acc, bittensor::block_columns),
      view<const std::int32_t>("column_add", column_add, bittensor::block_columns), row_add,
      scale ? view<const float>("scale", *scale, bittensor::block_columns) : nullptr, out_zero};
  code_kernels(entry).store_codes(
      row, columns, view<std::uint64_t>("words", words, bittensor::words_per_row(columns, entry.bits)));
}

void store_sums(
    const std::string& kernel, const py::buffer& acc, const py::buffer& column_add, int row_add, std::int64_t columns,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_sums);
  bittensor::kernels_for(entry.isa).store_sums(
      view<const std::int32_t>("acc", acc, columns), view<const std::int32_t>("column_add", column_add, columns),
      row_add, columns, view<std::int32_t>("out", out, columns));
}

bittensor::FloatType float_type(const std::string& name) {
  if (name == "float32") return bittensor::FloatType::f32;
  if (name == "float16") return bittensor::FloatType::f16;
  if (name == "bfloat16") return bittensor::FloatType::bf16;
  throw std::invalid_argument("float type: expected float32, float16 or bfloat16, got '" + name + "'");
}

bittensor::Activation activation_named(const std::string& name) {
  if (name == "none") return bittensor::Activation::none;
  if (name == "relu") return bittensor::Activation::relu;
  if (name == "gelu") return bittensor::Activation::gelu;
  if (name == "silu") return bittensor::Activation::silu;
  throw std::invalid_argument("activation: expected none, relu, gelu or silu, got '" + name + "'");
}

const bittensor::LinearKernels& linear_kernels(const KernelEntry& entry) {
  return bittensor::kernels_for(entry.isa).linear;
}

/// A prepared weight and its layout, which its header tells.
struct Prepared {
  const std::uint8_t* bytes;
  bittensor::PreparedLayout layout;

  explicit Prepared(const py::buffer& buffer) : bytes(view<const std::uint8_t>("prepared", buffer, 64)), layout() {
    const py::buffer_info info = buffer.request();
    layout = bittensor::read_layout(bytes, static_cast<std::int64_t>(info.size * info.itemsize));
  }
};

std::int64_t prepared_bytes(
    std::int64_t out_features, std::int64_t in_features, int bits, std::int64_t group_size, int zero,
    const std::string& scale_type) {
  if (zero < 0 || zero > 2) throw std::invalid_argument("zero: expected 0, 1 or 2");
  const bittensor::PreparedLayout layout = {
      out_features, in_features, group_size, bits, float_type(scale_type), static_cast<bittensor::ZeroKind>(zero)};
  bittensor::check_layout(layout);
  return layout.bytes();
}

void quantize_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& codes, const py::buffer& scales, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::quantize_row);
  const Prepared weight(prepared);
  const bittensor::FloatType x_type = float_type(type);
  linear_kernels(entry).quantize_row(
      view<const std::uint8_t>("x", x, weight.layout.in_features * bittensor::bytes_of(x_type)), x_type, weight.layout,
      view<std::int8_t>("codes", codes, weight.layout.padded_columns()),
      view<float>("scales", scales, weight.layout.activation_groups()),
      view<std::int32_t>("sums", sums, weight.layout.groups()));
}

void widen_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::widen_row);
  const Prepared weight(prepared);
  const bittensor::FloatType x_type = float_type(type);
  linear_kernels(entry).widen_row(
      view<const std::uint8_t>("x", x, weight.layout.in_features * bittensor::bytes_of(x_type)), x_type, weight.layout,
      view<float>("values", values, weight.layout.padded_columns()));
}

/// Codes, scales and sums have a row for each digit.
void split_row(
    const std::string& kernel, const py::buffer& prepared, const py::buffer& x, const std::string& type,
    const py::buffer& codes, const py::buffer& scales, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::split_row);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  const bittensor::FloatType x_type = float_type(type);
  constexpr std::int64_t digits = bittensor::activation_digits;
  linear_kernels(entry).split_row(
      view<const std::uint8_t>("x", x, layout.in_features * bittensor::bytes_of(x_type)), x_type, layout,
      {view<std::int8_t>("codes", codes, digits * layout.padded_columns()), layout.padded_columns(),
       view<float>("scales", scales, digits * layout.activation_groups()), layout.activation_groups(),
       view<std::int32_t>("sums", sums, digits * layout.groups()), layout.groups()});
}

void add_digits(const std::string& kernel, const py::buffer& y, std::int64_t rows, std::int64_t columns) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::add_digits);
  if (rows < 1 || columns < 1 || columns % bittensor::tile_rows != 0) {
    throw std::invalid_argument("rows, columns: expected at least one row, and whole tiles of columns");
  }
  linear_kernels(entry).add_digits(
      view<float>("y", y, bittensor::activation_digits * rows * columns), rows, columns, columns);
}

void int8_linear(
    const std::string& kernel, const py::buffer& prepared, std::int64_t rows, const py::buffer& x,
    const py::buffer& scales, const py::buffer& sums, const py::buffer& y, std::int64_t row_tiles, bool next_run) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::int8_linear);
  const Prepared weight(prepared);
  if (weight.layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (rows < 1) throw std::invalid_argument("rows: expected at least 1");
  if (row_tiles < 1 || row_tiles > 3) throw std::invalid_argument("row_tiles: expected 1 to 3");
  const bittensor::PreparedLayout& layout = weight.layout;
  bittensor::Int8LinearBlock block{};  // all tiles, all groups, rows without gaps
  block.layout = &layout;
  block.codes = weight.bytes + layout.codes_begin();
  block.scales = weight.bytes + layout.scales_begin();
  block.zeros = weight.bytes + layout.zeros_begin();
  block.tiles = layout.tiles();
  block.x_stride = layout.padded_columns();
  block.rows = rows;
  block.y_stride = layout.tiles() * bittensor::tile_rows;
  block.y = view<float>("y", y, rows * block.y_stride);
  block.x = view<const std::int8_t>("x", x, rows * block.x_stride);
  block.x_group_stride = rows;
  block.x_scales = view<const float>("scales", scales, rows * layout.activation_groups());
  block.x_sums = view<const std::int32_t>("sums", sums, rows * layout.groups());
  const std::vector<float> totals(block.x_sums, block.x_sums + rows * layout.groups());
  block.x_totals = totals.data();
  block.tiles_to_come = block.tiles;
  block.fetch.row_tiles = row_tiles;
  block.fetch.next_run = next_run;
  block.is_large = true;
  linear_kernels(entry).int8_linear_for(entry.bits)(block);
}

void store_outputs(
    const std::string& kernel, const py::buffer& y, std::int64_t columns, const std::optional<py::buffer>& bias,
    const std::string& activation, const std::string& type, const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_outputs);
  const bittensor::FloatType out_type = float_type(type);
  linear_kernels(entry).store_outputs(
      view<const float>("y", y, columns), columns, bias ? view<const float>("bias", *bias, columns) : nullptr,
      activation_named(activation), nullptr, out_type,
      view<std::uint8_t>("out", out, columns * bittensor::bytes_of(out_type)));
}

void normalize_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& weight, float epsilon, const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::normalize_row);
  const bittensor::FloatType x_type = float_type(type);
  bittensor::kernels_for(entry.isa).transformer.normalize_row(
      view<const std::uint8_t>("x", x, columns * bittensor::bytes_of(x_type)), x_type, columns,
      view<const float>("weight", weight, columns), epsilon, view<float>("out", out, columns));
}

void gate_row(
    const std::string& kernel, const py::buffer& x, std::int64_t columns, const std::string& type,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::gate_row);
  const bittensor::FloatType x_type = float_type(type);
  bittensor::kernels_for(entry.isa).transformer.gate_row(
      view<const std::uint8_t>("x", x, 2 * columns * bittensor::bytes_of(x_type)), x_type, columns,
      view<float>("out", out, columns));
}

void softmax_row(const std::string& kernel, const py::buffer& scores, std::int64_t columns) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::softmax_row);
  if (columns < 1) throw std::invalid_argument("columns: expected at least 1");
  bittensor::kernels_for(entry.isa).transformer.softmax_row(
      view<float>("scores", scores, (columns + 15) / 16 * 16), columns);
}

void dequantize_panel(
    const std::string& kernel, const py::buffer& prepared, std::int64_t first_column, std::int64_t columns,
    const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::dequantize_panel);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (first_column < 0 || columns < 1 || first_column >= layout.in_features ||
      columns > layout.in_features - first_column || first_column % layout.group_size % bittensor::panel_unit != 0) {
    throw std::invalid_argument("first_column, columns: expected columns of the weight, from the begin of a unit on");
  }
  const std::int64_t stride = columns + bittensor::panel_unit;
  bittensor::kernels_for(entry.isa).gradient.dequantize_panel_for(entry.bits)(
      {&layout, weight.bytes, 0, layout.tiles(), first_column, columns,
       view<float>("values", values, layout.tiles() * bittensor::tile_rows * stride), stride});
}

void dequantize_row(const std::string& kernel, const py::buffer& prepared, std::int64_t row, const py::buffer& values) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::dequantize_row);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (row < 0 || row >= layout.out_features) throw std::invalid_argument("row: expected one of the weight");
  bittensor::kernels_for(entry.isa).embedding.dequantize_row_for(entry.bits)(
      layout, weight.bytes, row, view<float>("values", values, layout.in_features + bittensor::row_padding));
}

/// Patches that follow each other, [positions, in_features, tile_rows], against the first tile of the weight.
void multiply_lanes(
    const KernelEntry& entry, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  const bool int8 = entry.kind == KernelKind::int8_lanes;
  if (int8 && layout.group_size > bittensor::most_int8_lanes_columns(layout.bits)) {
    throw std::invalid_argument("prepared: groups of more columns than are exact");
  }
  if (positions < 0) throw std::invalid_argument("positions: expected at least 0");
  constexpr std::int64_t vector = bittensor::tile_rows;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(layout.in_features));
  for (std::size_t k = 0; k < offsets.size(); ++k) offsets[k] = static_cast<std::int64_t>(k) * vector;
  std::vector<float> weights(static_cast<std::size_t>((layout.in_features + vector) * vector));
  bittensor::LanesBlock block{};
  block.layout = &layout;
  block.codes = weight.bytes + layout.codes_begin();
  block.scales = weight.bytes + layout.scales_begin();
  block.zeros = weight.bytes + layout.zeros_begin();
  block.x = view<const float>("x", x, positions * layout.in_features * vector);
  block.offsets = offsets.data();
  block.rows = positions > 0 ? 1 : 0;
  block.positions = positions;
  block.position_stride = layout.in_features * vector;
  block.weights = weights.data();
  block.y = view<float>("y", y, positions * vector);
  block.y_stride = vector;
  const bittensor::ConvolutionKernels& kernels = bittensor::kernels_for(entry.isa).convolution;
  (int8 ? kernels.int8_lanes_for(entry.bits) : kernels.float_lanes_for(entry.bits))(block);
}

void int8_lanes(
    const std::string& kernel, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  multiply_lanes(find_kernel(kernel, KernelKind::int8_lanes), prepared, positions, x, y);
}

void float_lanes(
    const std::string& kernel, const py::buffer& prepared, std::int64_t positions, const py::buffer& x,
    const py::buffer& y) {
  multiply_lanes(find_kernel(kernel, KernelKind::float_lanes), prepared, positions, x, y);
}

void panel_product(
    const std::string& kernel, std::int64_t rows, std::int64_t depth, std::int64_t tiles, const py::buffer& dy,
    const py::buffer& panel, bool continues, const py::buffer& sums) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::panel_product);
  if (rows < 1 || depth < 1 || tiles < 1) throw std::invalid_argument("rows, depth, tiles: expected at least 1");
  const std::int64_t columns = tiles * bittensor::panel_unit;
  bittensor::kernels_for(entry.isa).gradient.panel_product(
      {view<const float>("dy", dy, rows * depth), depth, rows, view<const float>("panel", panel, depth * columns),
       columns, depth, tiles, view<float>("sums", sums, rows * columns), columns, continues});
}

void codes_product(
    const std::string& kernel, const py::buffer& prepared, std::int64_t rows, const py::buffer& dy,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::codes_product);
  const Prepared weight(prepared);
  const bittensor::PreparedLayout& layout = weight.layout;
  if (layout.bits != entry.bits) throw std::invalid_argument("prepared: another width than the kernel's");
  if (rows < 1) throw std::invalid_argument("rows: expected at least 1");
  const bittensor::GradientKernels& kernels = bittensor::kernels_for(entry.isa).gradient;
  const std::int64_t strips = (layout.blocks() + kernels.strip_blocks - 1) / kernels.strip_blocks;
  std::vector<float> sums(static_cast<std::size_t>(rows * strips * kernels.strip_blocks * layout.block_columns()));
  kernels.codes_product_for(entry.bits)(
      {&layout, weight.bytes, view<const float>("dy", dy, rows * layout.out_features), layout.out_features, rows, 0,
       layout.blocks(), sums.data(), view<float>("out", out, rows * layout.in_features), layout.in_features});
}

py::list kernel_table() {
  py::list rows;
  for (const KernelEntry& entry : bittensor::kernel_table()) {
    py::dict row;
    row["name"] = entry.name;
    row["kind"] = bittensor::kind_name(entry.kind);
    row["bits"] = entry.bits;
    row["isa"] = bittensor::isa_name(entry.isa);
    row["supported"] = entry.supported;
    row["calls"] = entry.calls;
    rows.append(row);
  }
  return rows;
}

// The limits of the machine. Other Python threads may run meanwhile.

void bind_limits(py::module_& module) {
  using bittensor::Sampling;
  constexpr Sampling defaults{};
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(
      "int8_peak",
      [](const std::string& isa, int threads, double seconds, int repeats) {
        return bittensor::int8_peak(bittensor::parse_isa(isa), {threads, seconds, repeats});
      },
      py::arg("isa"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Products of bytes summed in 32 bits, operations per second; a multiply-add counts as two.");
  module.def(
      "fma_peak",
      [](const std::string& isa, int threads, double seconds, int repeats) {
        return bittensor::fma_peak(bittensor::parse_isa(isa), {threads, seconds, repeats});
      },
      py::arg("isa"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "float32 multiply-adds, operations per second; a multiply-add counts as two.");
  module.def(
      "read_bandwidth",
      [](std::int64_t bytes, int threads, double seconds, int repeats) {
        return bittensor::read_bandwidth(bytes, {threads, seconds, repeats});
      },
      py::arg("size"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Bytes per second read from a buffer of `size` bytes that the threads divide.");
  module.def(
      "copy_bandwidth",
      [](std::int64_t bytes, int threads, double seconds, int repeats) {
        return bittensor::copy_bandwidth(bytes, {threads, seconds, repeats});
      },
      py::arg("size"), py::arg("threads") = 1, py::arg("seconds") = defaults.seconds,
      py::arg("repeats") = defaults.repeats, released,
      "Bytes per second that memcpy copies between buffers of `size` bytes; a byte read and written counts once.");
}

}  // namespace

// What the library shares between threads is constant, atomic or a thread's own: it needs no lock of the interpreter.
PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "CPU features, the kernel table and every kernel of libbittensor by name.";
  module.attr("__version__") = BITTENSOR_VERSION;

  module.def(
      "known_isas",
      [] {
        py::list names;
        for (const bittensor::Isa isa : bittensor::known_isas()) names.append(bittensor::isa_name(isa));
        return names;
      },
      "Names of all instruction sets there are kernels for, weakest first.");
  module.def(
      "supported_isas",
      [] {
        py::list names;
        for (const bittensor::Isa isa : bittensor::known_isas()) {
          if (bittensor::is_supported(isa)) names.append(bittensor::isa_name(isa));
        }
        return names;
      },
      "Names of the instruction sets this machine can run, weakest first.");
  module.def(
      "choose_isa",
      [] {
        const bittensor::IsaChoice choice = bittensor::choose_isa();
        return std::pair<std::string, std::string>(bittensor::isa_name(choice.isa), choice.reason);
      },
      "The instruction set in use and the reason; ValueError if BITTENSOR_ISA is unknown or unsupported.");
  module.def(
      "cpu_features",
      [] {
        py::dict features;
        for (const auto& [name, present] : bittensor::cpu_features()) features[py::str(name)] = present;
        return features;
      },
      "Processor features by name.");
  module.def("kernel_table", &kernel_table, "Every kernel: name, kind, bits, isa, supported, calls.");

  module.def(
      "prepared_bytes", &prepared_bytes, py::arg("out_features"), py::arg("in_features"), py::arg("bits"),
      py::arg("group_size"), py::arg("zero"), py::arg("scale_type"), "Bytes of a prepared weight of that form.");

  module.def("pack_row", &pack_row, py::arg("kernel"), py::arg("codes"), py::arg("columns"), py::arg("words"));
  module.def("unpack_row", &unpack_row, py::arg("kernel"), py::arg("words"), py::arg("columns"), py::arg("codes"));
  module.def(
      "expand_planes", &expand_planes, py::arg("kernel"), py::arg("words"), py::arg("columns"), py::arg("shift"),
      py::arg("planes"));
  module.def(
      "integer_dot", &integer_dot, py::arg("kernel"), py::arg("planes"), py::arg("plane_stride"), py::arg("rows"),
      py::arg("words"), py::arg("columns"), py::arg("in_features"), py::arg("acc"), py::arg("fetch") = "none");
  module.def(
      "store_codes", &store_codes, py::arg("kernel"), py::arg("acc"), py::arg("column_add"), py::arg("row_add"),
      py::arg("scale"), py::arg("out_zero"), py::arg("columns"), py::arg("words"));
  module.def(
      "quantize_row", &quantize_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"),
      py::arg("codes"), py::arg("scales"), py::arg("sums"));
  module.def(
      "widen_row", &widen_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"),
      py::arg("values"));
  module.def(
      "split_row", &split_row, py::arg("kernel"), py::arg("prepared"), py::arg("x"), py::arg("dtype"), py::arg("codes"),
      py::arg("scales"), py::arg("sums"));
  module.def("add_digits", &add_digits, py::arg("kernel"), py::arg("y"), py::arg("rows"), py::arg("columns"));
  module.def(
      "int8_linear", &int8_linear, py::arg("kernel"), py::arg("prepared"), py::arg("rows"), py::arg("x"),
      py::arg("scales"), py::arg("sums"), py::arg("y"), py::arg("row_tiles") = 2, py::arg("next_run") = false);
  module.def(
      "store_outputs", &store_outputs, py::arg("kernel"), py::arg("y"), py::arg("columns"), py::arg("bias"),
      py::arg("activation"), py::arg("dtype"), py::arg("out"));
  module.def(
      "normalize_row", &normalize_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"),
      py::arg("weight"), py::arg("epsilon"), py::arg("out"));
  module.def(
      "gate_row", &gate_row, py::arg("kernel"), py::arg("x"), py::arg("columns"), py::arg("dtype"), py::arg("out"));
  module.def("softmax_row", &softmax_row, py::arg("kernel"), py::arg("scores"), py::arg("columns"));
  module.def(
      "dequantize_panel", &dequantize_panel, py::arg("kernel"), py::arg("prepared"), py::arg("first_column"),
      py::arg("columns"), py::arg("values"));
  module.def(
      "dequantize_row", &dequantize_row, py::arg("kernel"), py::arg("prepared"), py::arg("row"), py::arg("values"));
  module.def(
      "int8_lanes", &int8_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
  module.def(
      "float_lanes", &float_lanes, py::arg("kernel"), py::arg("prepared"), py::arg("positions"), py::arg("x"),
      py::arg("y"));
  module.def(
      "panel_product", &panel_product, py::arg("kernel"), py::arg("rows"), py::arg("depth"), py::arg("tiles"),
      py::arg("dy"), py::arg("panel"), py::arg("continues"), py::arg("sums"));
  module.def(
      "codes_product", &codes_product, py::arg("kernel"), py::arg("prepared"), py::arg("rows"), py::arg("dy"),
      py::arg("out"));
  module.def(
      "store_sums", &store_sums, py::arg("kernel"), py::arg("acc"), py::arg("column_add"), py::arg("row_add"),
      py::arg("columns"), py::arg("out"));

  bind_limits(module);
}
