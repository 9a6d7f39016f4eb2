// The matrix whose shape is part of its type. Most of this is proved by the compiler.

#include <type_traits>

#include "bittensor/static_packed_tensor.hpp"
#include "check.hpp"
#include "kernels_under_test.hpp"

using bittensor::PackedTensor;
using bittensor::StaticPackedTensor;

namespace {

/// `Count` codes that run through all values of the width.
template <int Bits, std::size_t Count>
constexpr std::array<std::uint8_t, Count> counting() {
  std::array<std::uint8_t, Count> codes{};
  for (std::size_t i = 0; i < Count; ++i) {
    codes[i] = static_cast<std::uint8_t>((i + 1) & static_cast<unsigned>(bittensor::max_code(Bits)));
  }
  return codes;
}

template <int Bits, std::int64_t Rows, std::int64_t Columns>
constexpr auto packed = StaticPackedTensor<Bits, Rows, Columns>::from_codes(counting<Bits, Rows * Columns>());

template <int Bits, std::int64_t Columns, std::size_t Count>
constexpr auto pack_row(const std::array<std::uint8_t, Count>& codes) {
  return StaticPackedTensor<Bits, 1, Columns>::from_codes(codes).words();
}

// Lowest bits first: the first code is the lowest nibble of the word.
static_assert(packed<4, 1, 16>.words()[0] == 0x0FED'CBA9'8765'4321);
static_assert(packed<8, 1, 8>.words()[0] == 0x0807'0605'0403'0201);
static_assert(packed<2, 1, 8>.words()[0] == 0b00'11'10'01'00'11'10'01);
static_assert(packed<1, 1, 8>.words()[0] == 0b0101'0101);

// The last code of a word reaches its top bit.
template <int Bits>
constexpr std::uint64_t last_code_of_a_word() {
  constexpr auto codes = static_cast<std::size_t>(bittensor::codes_per_word(Bits));
  std::array<std::uint8_t, codes> last{};
  last.back() = static_cast<std::uint8_t>(bittensor::max_code(Bits));
  return pack_row<Bits, codes>(last)[0];
}
static_assert(last_code_of_a_word<1>() == 0x8000'0000'0000'0000);
static_assert(last_code_of_a_word<2>() == 0xC000'0000'0000'0000);
static_assert(last_code_of_a_word<4>() == 0xF000'0000'0000'0000);
static_assert(last_code_of_a_word<8>() == 0xFF00'0000'0000'0000);

// Every row starts a new word, and the rest of its last word is 0.
static_assert(packed<4, 2, 3>.words() == std::array<std::uint64_t, 2>{0x321, 0x654});
static_assert(packed<4, 1, 17>.words() == std::array<std::uint64_t, 2>{0x0FED'CBA9'8765'4321, 0x1});
static_assert(
    packed<8, 2, 9>.words() == std::array<std::uint64_t, 4>{0x0807'0605'0403'0201, 0x09, 0x1110'0F0E'0D0C'0B0A, 0x12});
static_assert(packed<1, 1, 65>.words() == std::array<std::uint64_t, 2>{0x5555'5555'5555'5555, 0x1});
static_assert(packed<2, 3, 33>.words().size() == 6 && StaticPackedTensor<2, 3, 33>::row_words == 2);

// Nothing takes no room, and default is 0.
static_assert(StaticPackedTensor<4, 0, 5>::word_count == 0 && StaticPackedTensor<4, 5, 0>::word_count == 0);
static_assert(packed<4, 5, 0>.unpack().empty());
static_assert(StaticPackedTensor<4, 2, 3>() != packed<4, 2, 3> && StaticPackedTensor<4, 1, 20>().words()[1] == 0);

// Round trips, of rows with and without a tail.
template <int Bits, std::int64_t Rows, std::int64_t Columns>
constexpr bool round_trip() {
  const auto codes = counting<Bits, Rows * Columns>();
  const auto& tensor = packed<Bits, Rows, Columns>;
  bool same = tensor.unpack() == codes && tensor.rows() == Rows && tensor.columns() == Columns;
  for (std::int64_t r = 0; r < Rows; ++r) {
    for (std::int64_t k = 0; k < Columns; ++k) {
      same = same && tensor.code(r, k) == codes[static_cast<std::size_t>(r * Columns + k)];
    }
  }
  return same;
}
static_assert(round_trip<1, 3, 64>() && round_trip<1, 3, 63>() && round_trip<1, 3, 65>() && round_trip<1, 2, 130>());
static_assert(round_trip<2, 3, 32>() && round_trip<2, 3, 31>() && round_trip<2, 3, 33>() && round_trip<2, 2, 70>());
static_assert(round_trip<4, 3, 16>() && round_trip<4, 3, 15>() && round_trip<4, 3, 17>() && round_trip<4, 2, 40>());
static_assert(round_trip<8, 3, 8>() && round_trip<8, 3, 7>() && round_trip<8, 3, 9>() && round_trip<8, 2, 300>());

/// Whether the codes can be packed in a constant expression.
template <int Bits, auto Codes>
concept compiles = requires { typename std::bool_constant<(pack_row<Bits, Codes.size()>(Codes), true)>; };
template <int... Values>
constexpr std::array<std::uint8_t, sizeof...(Values)> codes_of = {Values...};

static_assert(compiles<4, codes_of<0, 15>> && !compiles<4, codes_of<0, 16>> && !compiles<4, codes_of<255>>);
static_assert(compiles<2, codes_of<3, 0>> && !compiles<2, codes_of<4, 0>>);
static_assert(compiles<1, codes_of<1, 1>> && !compiles<1, codes_of<1, 1, 2>>);
static_assert(compiles<8, codes_of<255, 0>>);

/// Whether a position can be read in a constant expression.
template <std::int64_t Row, std::int64_t Column>
concept readable = requires { typename std::integral_constant<int, packed<4, 2, 3>.code(Row, Column)>; };
static_assert(readable<1, 2> && !readable<2, 0> && !readable<0, 3> && !readable<-1, 0> && !readable<0, -1>);

/// The packing of the compiler and that of the kernels are the same.
template <int Bits>
void check_conversion() {
  constexpr std::int64_t columns = 77;
  constexpr auto codes = counting<Bits, 3 * columns>();
  constexpr auto tensor = packed<Bits, 3, columns>;
  CONTEXT("%d bits", Bits);
  CHECK(tensor.to_packed_tensor() == PackedTensor<Bits>(3, columns, codes));
  CHECK_EQUAL(tensor.words(), packed_by_rule(std::vector(codes.begin(), codes.end()), 3, columns, Bits));
}

}  // namespace

TEST(the_kernels_pack_in_the_same_way) {
  check_conversion<1>();
  check_conversion<2>();
  check_conversion<4>();
  check_conversion<8>();
}

TEST(what_does_not_fit_is_refused_at_run_time) {
  const std::array<std::uint8_t, 6> codes = {0, 1, 2, 3, 16, 5};
  using Tensor = StaticPackedTensor<4, 2, 3>;
  CHECK_THROWS(std::invalid_argument, "got 16 in row 1, column 1", Tensor::from_codes(codes));
  CHECK_THROWS(std::out_of_range, "no row 2, column 0 in 2 x 3", Tensor().code(2, 0));
}
