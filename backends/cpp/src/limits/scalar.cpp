#include "loops.hpp"

namespace bittensor {
namespace {

/// One value at a time, without help from the vectorizer: `forget` keeps every value in a register of its own.
struct Scalar {
  static constexpr Isa isa = Isa::scalar;
  static constexpr int bytes = 4;
  static constexpr int chains = 8;
  static constexpr int dot_products = 1;
  using Integers = std::uint32_t;
  using Floats = float;

  static Integers integers(std::uint32_t value) { return value; }
  static Integers dot(Integers sum, Integers a, Integers b) { return sum + a * b; }
  static Integers load(const std::uint8_t* from) {
    Integers value = 0;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static Integers exclusive_or(Integers a, Integers b) { return a ^ b; }
  static void forget(Integers& value) { __asm__ volatile("" : "+r"(value)); }
  static std::uint64_t fold(Integers value) { return value; }

  static Floats floats(float value) { return value; }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static void forget(Floats& value) { __asm__ volatile("" : "+x"(value)); }
  static std::uint64_t fold(Floats value) { return value > 0.0F ? 1 : 0; }
};

}  // namespace

extern const LimitKernels scalar_limits;
constinit const LimitKernels scalar_limits = limits<Scalar>();

}  // namespace bittensor
