#include "avx512.hpp"

// The tile registers by number, shared with the kernels.
#include "../kernels/amx_tiles.hpp"

namespace bittensor {
namespace {

/// Four tiles of sums, as in the kernels: 16 rows by 16 columns by 64 products each.
std::uint64_t tile_dot(std::int64_t rounds) {
  alignas(64) std::uint8_t bytes[1024];
  for (int i = 0; i < 1024; ++i) bytes[i] = static_cast<std::uint8_t>(i * 37);
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, 16, 64);
  configure_tiles(config);
  load_tile<4>(bytes, 64);
  load_tile<5>(bytes, 64);
  load_tile<6>(bytes, 64);
  load_tile<7>(bytes, 64);
  for (std::int64_t round = 0; round < rounds; ++round) {
    multiply_tiles<0, 4, 6, false>();
    multiply_tiles<1, 4, 7, false>();
    multiply_tiles<2, 5, 6, false>();
    multiply_tiles<3, 5, 7, false>();
  }
  store_tile<0>(bytes, 64);
  release_tiles();
  std::uint64_t seen = 0;
  __builtin_memcpy(&seen, bytes, sizeof seen);
  return seen;
}

constexpr LimitKernels amx() {
  LimitKernels all = limits<Avx512>();
  all.isa = Isa::amx;
  all.int8_dot = tile_dot;
  all.int8_dot_operations = std::int64_t{4} * 16 * 16 * 64 * 2;
  return all;
}

}  // namespace

extern const LimitKernels amx_limits;
constinit const LimitKernels amx_limits = amx();

}  // namespace bittensor
