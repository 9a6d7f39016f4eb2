// Kernels on codes: packing, products of integers, and what becomes of their sums.

#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "kernel_operands.hpp"
#include "native_module.hpp"

namespace bittensor::binding {
namespace {

const CodeKernels& code_kernels(const KernelEntry& entry) {
  return kernels_for(entry.isa).for_bits(entry.bits);
}

std::int64_t plane_bytes(std::int64_t columns, int bits) {
  if (columns < 0) throw std::invalid_argument("columns: expected at least 0");
  constexpr std::int64_t block_words = block_bytes / 8;
  const std::int64_t words = words_per_row(columns, bits);
  return count_of(words / block_words + (words % block_words > 0 ? 1 : 0), block_bytes, 8 / bits);
}

int pack_row(const std::string& kernel, const py::buffer& codes, std::int64_t columns, const py::buffer& words) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::pack_row);
  return code_kernels(entry).pack_row(
      view<const std::uint8_t>("codes", codes, columns), columns,
      view<std::uint64_t>("words", words, words_per_row(columns, entry.bits)));
}

void unpack_row(const std::string& kernel, const py::buffer& words, std::int64_t columns, const py::buffer& codes) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::unpack_row);
  code_kernels(entry).unpack_row(
      view<const std::uint64_t>("words", words, words_per_row(columns, entry.bits)), columns,
      view<std::uint8_t>("codes", codes, columns));
}

int expand_planes(
    const std::string& kernel, const py::buffer& words, std::int64_t columns, int shift, const py::buffer& planes) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::expand_planes);
  return code_kernels(entry).expand_planes(
      view<const std::uint64_t>("words", words, words_per_row(columns, entry.bits)), columns, shift,
      view<std::int8_t>("planes", planes, plane_bytes(columns, entry.bits)));
}

WordFetch word_fetch_named(const std::string& name) {
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
  if (rows < 1 || columns < 1 || columns > block_columns) {
    throw std::invalid_argument("rows: expected at least 1; columns: expected 1..64");
  }
  if (plane_stride < plane_bytes(in_features, entry.bits)) {
    throw std::invalid_argument("plane_stride: shorter than the planes of a row");
  }
  IntegerDotBlock block{};
  block.row_words = words_per_row(in_features, entry.bits);
  block.word_stride = block.row_words;
  block.plane_stride = plane_stride;
  block.rows = rows;
  block.columns = columns;
  block.fetch = word_fetch_named(fetch);
  block.planes = view<const std::int8_t>(
      "planes", planes, count_of(rows, plane_stride) - plane_stride + plane_bytes(in_features, entry.bits));
  block.words = view<const std::uint64_t>("words", words, count_of(columns, block.row_words));
  block.acc = view<std::int32_t>("acc", acc, count_of(rows, block_columns));
  code_kernels(entry).integer_dot(block);
}

void store_codes(
    const std::string& kernel, const py::buffer& acc, const py::buffer& column_add, int row_add,
    const std::optional<py::buffer>& scale, int out_zero, std::int64_t columns, const py::buffer& words) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_codes);
  if (columns < 0 || columns > block_columns) throw std::invalid_argument("columns: expected 0..64");
  const CodeEpilogue row = {
      view<const std::int32_t>("acc", acc, block_columns),
      view<const std::int32_t>("column_add", column_add, block_columns), row_add,
      scale ? view<const float>("scale", *scale, block_columns) : nullptr, out_zero};
  code_kernels(entry).store_codes(
      row, columns, view<std::uint64_t>("words", words, words_per_row(columns, entry.bits)));
}

void store_sums(
    const std::string& kernel, const py::buffer& acc, const py::buffer& column_add, int row_add, std::int64_t columns,
    const py::buffer& out) {
  const KernelEntry entry = find_kernel(kernel, KernelKind::store_sums);
  kernels_for(entry.isa).store_sums(
      view<const std::int32_t>("acc", acc, columns), view<const std::int32_t>("column_add", column_add, columns),
      row_add, columns, view<std::int32_t>("out", out, columns));
}

}  // namespace

void bind_code_kernels(py::module_& module) {
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
      "store_sums", &store_sums, py::arg("kernel"), py::arg("acc"), py::arg("column_add"), py::arg("row_add"),
      py::arg("columns"), py::arg("out"));
}

}  // namespace bittensor::binding
