#pragma once

/// The limits of the machine, measured: what no kernel can exceed, and what kernels are therefore compared with.

#include <cstdint>

#include "bittensor/export.hpp"
#include "bittensor/kernel_set.hpp"

namespace bittensor {

/// How a limit is sampled. The result is the best repeat: a limit is what the machine can do when nothing disturbs it.
struct Sampling {
  int threads = 1;
  double seconds = 0.02;  // of one repeat, at least
  int repeats = 5;
};

/// Products of unsigned by signed bytes summed in 32 bits, operations per second; a multiply-add counts as two.
/// With VNNI: VPDPBUSD. avx2 and avx512: VPMADDUBSW, VPMADDWD, VPADDD; a kernel for narrow codes that adds in 16 bits
/// first needs fewer instructions and may exceed it. scalar: multiply and add of one product.
/// Throws std::invalid_argument if this machine cannot run `isa`, or `sampling` is not positive.
BITTENSOR_API double int8_peak(Isa isa, const Sampling& sampling = {});

/// Fused multiply-adds of float32 (scalar: a multiplication and an addition), operations per second; one counts as
/// two. Throws as `int8_peak` does.
BITTENSOR_API double fma_peak(Isa isa, const Sampling& sampling = {});

/// Bytes per second read, over and over, from a buffer of `bytes` that the threads divide: the bandwidth of the
/// smallest cache that holds it, or of memory. The best of several access patterns, with the widest loads there are.
/// Throws std::invalid_argument if a thread's part would be below 4096 bytes, or `sampling` is not positive.
BITTENSOR_API double read_bandwidth(std::int64_t bytes, const Sampling& sampling = {});

/// Bytes per second that std::memcpy copies between two buffers of `bytes` each that the threads divide; a byte that
/// is read and written counts once. Throws as `read_bandwidth` does.
BITTENSOR_API double copy_bandwidth(std::int64_t bytes, const Sampling& sampling = {});

}  // namespace bittensor
