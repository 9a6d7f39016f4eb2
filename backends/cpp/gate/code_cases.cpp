// Cases of the kernels on codes: packing, products of integers, and what becomes of their sums.

#include <array>
#include <cstdint>
#include <string>

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/kernel_table.hpp"
#include "case_list.hpp"

using bittensor::KernelKind;

namespace {

constexpr std::array widths = {1, 2, 4, 8};

std::int64_t planes_of(std::int64_t columns, int bits) {
  const std::int64_t bytes = bittensor::words_per_row(columns, bits) * 8;
  return (bytes + bittensor::block_bytes - 1) / bittensor::block_bytes * bittensor::block_bytes * (8 / bits);
}

void rows_of_codes(CaseList& cases, int bits, std::int64_t columns) {
  const bittensor::CodeKernels& codes = cases.kernels().for_bits(bits);
  const std::int64_t words = bittensor::words_per_row(columns, bits);
  const std::string place = "k" + number(columns);
  cases.add(KernelKind::pack_row, bits, place, real(columns), real(columns + words * 8), [=](Operands& o) -> Run {
    const auto* from = o.integers<std::uint8_t>(columns, 0, bittensor::max_code(bits));
    auto* to = o.array<std::uint64_t>(words);
    return [=] { codes.pack_row(from, columns, to); };
  });
  cases.add(KernelKind::unpack_row, bits, place, real(columns), real(columns + words * 8), [=](Operands& o) -> Run {
    auto* from = o.words(words);
    auto* to = o.array<std::uint8_t>(columns);
    return [=] { codes.unpack_row(from, columns, to); };
  });
  const std::int64_t planes = planes_of(columns, bits);
  cases.add(KernelKind::expand_planes, bits, place, real(columns), real(words * 8 + planes), [=](Operands& o) -> Run {
    auto* from = o.words(words);
    auto* to = o.array<std::int8_t>(planes);
    return [=] { codes.expand_planes(from, columns, bits == 8 ? 128 : 3 % (1 << bits), to); };
  });
}

void integer_dot(CaseList& cases, int bits, std::int64_t rows, bittensor::WordFetch fetch) {
  constexpr std::int64_t columns = 1024;
  constexpr std::int64_t outputs = bittensor::block_columns;
  const bittensor::CodeKernels& codes = cases.kernels().for_bits(bits);
  const std::int64_t words = bittensor::words_per_row(columns, bits);
  const std::int64_t stride = planes_of(columns, bits) + 64;
  const double bytes = real(rows * columns + outputs * words * 8 + rows * outputs * 4);
  const std::string order = fetch == bittensor::WordFetch::in_order ? "-in-order" : "";
  cases.add(
      KernelKind::integer_dot, bits, "m" + number(rows) + order, real(2 * rows * columns * outputs), bytes,
      [=](Operands& o) -> Run {
        bittensor::IntegerDotBlock block{};
        const int largest = bits == 8 ? 127 : bittensor::max_code(bits);
        block.planes = o.integers<std::int8_t>(rows * stride, -largest, largest);
        block.plane_stride = stride;
        block.rows = rows;
        block.words = o.words(outputs * words);
        block.word_stride = words;
        block.row_words = words;
        block.columns = outputs;
        block.fetch = fetch;
        block.acc = o.array<std::int32_t>(rows * outputs);
        return [=] { codes.integer_dot(block); };
      });
}

void store_codes(CaseList& cases, int bits, bool scaled) {
  constexpr std::int64_t columns = bittensor::block_columns;
  const bittensor::CodeKernels& codes = cases.kernels().for_bits(bits);
  const std::int64_t words = bittensor::words_per_row(columns, bits);
  const double bytes = real(epilogue_rows * (columns * 4 + words * 8) + columns * (scaled ? 8 : 4));
  const double values = real(epilogue_rows * columns);
  cases.add(KernelKind::store_codes, bits, scaled ? "scale" : "no-scale", values, bytes, [=](Operands& o) -> Run {
    bittensor::CodeEpilogue row{};
    row.acc = o.integers<std::int32_t>(epilogue_rows * columns, -400, 400);
    row.column_add = o.integers<std::int32_t>(columns, -100, 100);
    row.row_add = 7;
    row.scale = scaled ? o.floats(columns) : nullptr;
    row.out_zero = scaled ? 1 : 0;
    auto* to = o.array<std::uint64_t>(epilogue_rows * words);
    return [=] {
      bittensor::CodeEpilogue each = row;
      for (std::int64_t m = 0; m < epilogue_rows; ++m, each.acc += columns) {
        codes.store_codes(each, columns, to + m * words);
      }
    };
  });
}

void store_sums(CaseList& cases) {
  constexpr std::int64_t columns = bittensor::block_columns;
  const bittensor::StoreSums kernel = cases.kernels().store_sums;
  const double bytes = real(columns * 4 * (2 * epilogue_rows + 1));
  cases.add(KernelKind::store_sums, 0, "n64", real(epilogue_rows * columns), bytes, [=](Operands& o) -> Run {
    const auto* acc = o.integers<std::int32_t>(epilogue_rows * columns, -400, 400);
    const auto* column_add = o.integers<std::int32_t>(columns, -100, 100);
    auto* to = o.array<std::int32_t>(epilogue_rows * columns);
    return [=] {
      for (std::int64_t m = 0; m < epilogue_rows; ++m) {
        kernel(acc + m * columns, column_add, 7, columns, to + m * columns);
      }
    };
  });
}

}  // namespace

void add_code_cases(CaseList& cases) {
  for (const int bits : widths) {
    for (const std::int64_t columns : {std::int64_t{16384}, short_row}) rows_of_codes(cases, bits, columns);
    for (const std::int64_t rows : {1, 4, 32, 128}) integer_dot(cases, bits, rows, bittensor::WordFetch::none);
    for (const bool scaled : {false, true}) store_codes(cases, bits, scaled);
  }
  integer_dot(cases, 4, 1, bittensor::WordFetch::in_order);
  store_sums(cases);
}
