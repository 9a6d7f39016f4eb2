#pragma once

/// Instruction sets: what the processor and the operating system support, the names used to cap the choice, and what is
/// fastest on the processor.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bittensor/export.hpp"
#include "bittensor/kernel_set.hpp"

namespace bittensor {

/// Name of an instruction set as `BITTENSOR_ISA` and the kernel table spell it.
BITTENSOR_API const char* isa_name(Isa isa);

/// Every instruction set there are kernels for, weakest first.
BITTENSOR_API std::vector<Isa> known_isas();

/// True if this processor has the instructions and the operating system saves their registers.
BITTENSOR_API bool is_supported(Isa isa);

/// The kernels of one instruction set. Throws std::invalid_argument if this machine cannot run them.
BITTENSOR_API const KernelSet& kernels_for(Isa isa);

/// Parses a name. Throws std::invalid_argument, listing the known names, if it is unknown or cannot run here.
BITTENSOR_API Isa parse_isa(std::string_view name);

/// What differs between processors in speed alone: nothing that is computed depends on it.
struct Tuning {
  CodeFetch fetch;
  std::int64_t serial_products;  // of a linear; below so many a second thread costs more than it saves
  std::int64_t least_rows;       // fewer rows of a linear take as long as so many: reading the weight does
  bool row_in_order;             // one row of a linear meets a weight that comes from memory tile after tile
  bool decodes;                  // codes of a linear, once for many rows; on AMD it is not measured
  std::int64_t words_ahead;      // bytes that one row prefetches where it meets packed words in order
};

/// Measured on AMD Zen 4 and on Intel Xeons with AMX, which stand for their makes, and Intel for all others;
/// docs/kernels.md has the figures.
BITTENSOR_API const Tuning& tuning();

struct IsaChoice {
  Isa isa;
  std::string reason;
};

/// The best supported instruction set, capped by the environment variable BITTENSOR_ISA unless that is empty.
/// Throws std::invalid_argument if the variable names one that is unknown or cannot run here.
BITTENSOR_API IsaChoice choose_isa();

/// Processor features by name with their presence; "os_avx", "os_avx512" and "os_amx" say whether the operating
/// system saves the wide registers.
BITTENSOR_API std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace bittensor
