// Packing and unpacking of rows, by every kernel, and of matrices.

#include <algorithm>
#include <limits>

#include "bittensor/pack.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "kernels_under_test.hpp"

using bittensor::KernelSet;

namespace {

void check_row(const KernelSet& kernels, int bits, const std::vector<std::uint8_t>& codes) {
  const auto columns = static_cast<std::int64_t>(codes.size());
  const bittensor::CodeKernels& code_kernels = kernels.for_bits(bits);
  std::uint8_t seen = 0;
  for (const std::uint8_t code : codes) seen |= code;
  const std::vector<std::uint64_t> words = packed_by_rule(codes, 1, columns, bits);
  const std::vector<std::uint64_t> words_with_noise = packed_by_rule(codes, 1, columns, bits, true);
  for (const Side side : sides) {
    CONTEXT("%s, %d bits, %ld columns, guard at the %s", isa_name(kernels.isa), bits, long{columns}, name_of(side));
    Guarded<std::uint8_t> code_input(codes, side);
    Guarded<std::uint64_t> word_output(bittensor::words_per_row(columns, bits), side);
    CHECK_EQUAL(code_kernels.pack_row(code_input.data(), columns, word_output.data()), seen);
    CHECK_EQUAL(word_output.values(), words);
    CHECK(word_output.intact());

    Guarded<std::uint64_t> word_input(words_with_noise, side);
    Guarded<std::uint8_t> code_output(columns, side);
    code_kernels.unpack_row(word_input.data(), columns, code_output.data());
    CHECK_EQUAL(code_output.values(), codes);
    CHECK(code_output.intact());
  }
}

}  // namespace

TEST(a_row_of_any_length_has_a_number_of_words) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const int bits : widths) {
    CHECK_EQUAL(bittensor::words_per_row(most, bits), most / (64 / bits) + 1);
    CHECK_EQUAL(bittensor::words_per_row(0, bits), 0);
    CHECK_EQUAL(bittensor::words_per_row(64 / bits, bits), 1);
    CHECK_EQUAL(bittensor::words_per_row(64 / bits + 1, bits), 2);
  }
}

TEST(rows_of_every_length) {
  Random random(1);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const std::int64_t columns : lengths(bits)) {
        check_row(*kernels, bits, random_codes(random, columns, bits));
        check_row(
            *kernels, bits,
            std::vector<std::uint8_t>(
                static_cast<std::size_t>(columns), static_cast<std::uint8_t>(bittensor::max_code(bits))));
      }
      check_row(*kernels, bits, random_codes(random, 100'003, bits));
    }
  }
}

TEST(every_code_in_every_position_of_a_word) {
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (int position = 0; position < bittensor::codes_per_word(bits); ++position) {
        std::vector<std::uint8_t> codes(64, 0);
        for (int code = 0; code <= bittensor::max_code(bits); code += 1 + bittensor::max_code(bits) / 16) {
          codes[static_cast<std::size_t>(position)] = static_cast<std::uint8_t>(code);
          check_row(*kernels, bits, codes);
        }
      }
    }
  }
}

TEST(pack_row_reports_the_union_of_all_codes) {
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : {1, 2, 4}) {
      for (const int wrong : {bittensor::max_code(bits) + 1, 128, 255}) {
        for (std::size_t position = 0; position < 130; ++position) {
          CONTEXT("%s, %d bits, code %d in column %zu", isa_name(kernels->isa), bits, wrong, position);
          std::vector<std::uint8_t> codes(130, 1);
          codes[position] = static_cast<std::uint8_t>(wrong);
          std::vector<std::uint64_t> words(static_cast<std::size_t>(bittensor::words_per_row(130, bits)));
          CHECK_EQUAL(int{kernels->for_bits(bits).pack_row(codes.data(), 130, words.data())}, wrong | 1);
        }
      }
    }
  }
}

TEST(matrices) {
  Random random(2);
  struct Shape {
    std::int64_t rows;
    std::int64_t columns;
  };
  constexpr Shape shapes[] = {{0, 5},    {5, 0},      {1, 1},     {3, 16},    {7, 17},    {64, 64},
                              {5, 1000}, {1, 70'001}, {300, 320}, {4099, 17}, {2, 65'536}};
  bittensor::ThreadPool two(2);
  bittensor::ThreadPool three(3);
  const bittensor::ParallelFor loops[] = {{}, two.parallel_for(), three.parallel_for()};
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : widths) {
      for (const auto [rows, columns] : shapes) {
        const std::vector<std::uint8_t> codes = random_codes(random, rows * columns, bits);
        const std::vector<std::uint64_t> words = packed_by_rule(codes, rows, columns, bits);
        const std::vector<std::uint64_t> words_with_noise = packed_by_rule(codes, rows, columns, bits, true);
        for (const bittensor::ParallelFor& loop : loops) {
          CONTEXT(
              "%s, %d bits, %ld x %ld, %d threads", isa_name(kernels->isa), bits, long{rows}, long{columns},
              loop.thread_count());
          Guarded<std::uint64_t> packed(static_cast<std::int64_t>(words.size()), Side::back);
          CHECK(!bittensor::pack(codes.data(), rows, columns, bits, packed.data(), *kernels, loop));
          CHECK_EQUAL(packed.values(), words);
          CHECK(packed.intact());
          Guarded<std::uint8_t> unpacked(rows * columns, Side::back);
          bittensor::unpack(words_with_noise.data(), rows, columns, bits, unpacked.data(), *kernels, loop);
          CHECK_EQUAL(unpacked.values(), codes);
          CHECK(unpacked.intact());
        }
      }
    }
  }
}

TEST(pack_names_the_first_code_that_does_not_fit) {
  bittensor::ThreadPool pool(3);
  for (const KernelSet* kernels : kernels_under_test()) {
    for (const int bits : {1, 2, 4}) {
      for (const std::int64_t columns : {std::int64_t{64}, std::int64_t{77}}) {
        constexpr std::int64_t rows = 1200;
        CONTEXT("%s, %d bits, %ld columns", isa_name(kernels->isa), bits, long{columns});
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * columns), 1);
        std::vector<std::uint64_t> words(static_cast<std::size_t>(rows * bittensor::words_per_row(columns, bits)));
        codes[static_cast<std::size_t>(1100 * columns + 3)] = 255;
        codes[static_cast<std::size_t>(700 * columns + columns - 1)] = 16;
        codes[static_cast<std::size_t>(701 * columns)] = 200;
        const auto wrong =
            bittensor::pack(codes.data(), rows, columns, bits, words.data(), *kernels, pool.parallel_for());
        CHECK(wrong.has_value());
        CHECK_EQUAL(wrong->row, 700);
        CHECK_EQUAL(wrong->column, columns - 1);
        CHECK_EQUAL(wrong->code, 16);
      }
    }
  }
}

TEST(other_widths_are_refused) {
  const KernelSet& kernels = bittensor::kernels_for(bittensor::Isa::scalar);
  std::vector<std::uint8_t> codes(10);
  std::vector<std::uint64_t> words(10);
  for (const int bits : {-1, 0, 3, 5, 6, 7, 9, 16, 64}) {
    const std::string what = "bits: expected 1, 2, 4 or 8, got " + std::to_string(bits);
    CHECK_THROWS(std::invalid_argument, what, bittensor::pack(codes.data(), 1, 10, bits, words.data(), kernels));
    CHECK_THROWS(std::invalid_argument, what, bittensor::unpack(words.data(), 1, 10, bits, codes.data(), kernels));
  }
}
