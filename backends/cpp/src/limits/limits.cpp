// Sampling of the limits: threads, buffers and clocks around the loops of each instruction set.

#include "bittensor/limits.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bittensor/isa.hpp"
#include "bittensor/thread_pool.hpp"
#include "limit_kernels.hpp"

namespace bittensor {

extern const LimitKernels scalar_limits;
extern const LimitKernels avx2_limits;
extern const LimitKernels avxvnni_limits;
extern const LimitKernels avx512_limits;
extern const LimitKernels avx512vnni_limits;
extern const LimitKernels amx_limits;

namespace {

/// Weakest first, as in the list of implementations.
const std::array all_limits = {&scalar_limits, &avx2_limits,       &avxvnni_limits,
                               &avx512_limits, &avx512vnni_limits, &amx_limits};

const LimitKernels& limits_of(Isa isa) {
  kernels_for(isa);  // throws if this machine cannot run it
  for (const LimitKernels* each : all_limits) {
    if (each->isa == isa) return *each;
  }
  throw std::invalid_argument("isa: no limits are known for '" + std::string(isa_name(isa)) + "'");
}

const LimitKernels& widest_limits() {
  const LimitKernels* best = &scalar_limits;
  for (const LimitKernels* each : all_limits) {
    if (is_supported(each->isa)) best = each;
  }
  return *best;
}

/// Threads that run a piece of work over and over, for as long as a repeat shall last.
class Sampler {
 public:
  explicit Sampler(const Sampling& sampling)
      : sampling_(checked(sampling)), pool_(sampling.threads), seen_(static_cast<std::size_t>(sampling.threads)) {}

  /// Calls `f(thread)` once on each thread.
  template <class F>
  void on_each_thread(F&& f) {
    pool_.parallel_for()(sampling_.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t thread = begin; thread < end; ++thread) f(static_cast<std::size_t>(thread));
    });
  }

  /// Rounds per second of `work(thread, rounds)` in the best repeat.
  template <class Work>
  double best_rate(const Work& work) {
    std::int64_t rounds = 1;
    double taken = run(rounds, work);
    while (taken < sampling_.seconds) {
      const double factor = std::clamp(1.1 * sampling_.seconds / std::max(taken, 1e-9), 1.1, 16.0);
      rounds = static_cast<std::int64_t>(std::ceil(static_cast<double>(rounds) * factor));
      taken = run(rounds, work);
    }
    for (int repeat = 1; repeat < sampling_.repeats; ++repeat) taken = std::min(taken, run(rounds, work));
    return static_cast<double>(rounds) / taken;
  }

 private:
  static Sampling checked(const Sampling& sampling) {
    if (sampling.threads < 1 || sampling.repeats < 1 || !(sampling.seconds > 0.0)) {
      throw std::invalid_argument("sampling: expected at least 1 thread, 1 repeat and a positive time");
    }
    return sampling;
  }

  template <class Work>
  double run(std::int64_t rounds, const Work& work) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    on_each_thread([&](std::size_t thread) { seen_[thread] ^= work(thread, rounds); });
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Sampling sampling_;
  ThreadPool pool_;
  std::vector<std::uint64_t> seen_;  // results, so that the work has a purpose
};

/// Memory in huge pages where the system grants them, in equal parts, one for each thread.
class ThreadBuffers {
 public:
  ThreadBuffers(std::int64_t bytes, int threads)
      : part_(bytes / threads / read_granule * read_granule),
        memory_(
            static_cast<std::uint8_t*>(::operator new(
                static_cast<std::size_t>(std::max(part_, std::int64_t{0}) * threads), std::align_val_t{huge_page}))) {
    madvise(memory_, static_cast<std::size_t>(part_ * threads), MADV_HUGEPAGE);  // a wish: failing is no error
  }
  ~ThreadBuffers() { ::operator delete(memory_, std::align_val_t{huge_page}); }
  ThreadBuffers(const ThreadBuffers&) = delete;
  ThreadBuffers& operator=(const ThreadBuffers&) = delete;

  std::uint8_t* of(std::size_t thread) const { return memory_ + static_cast<std::int64_t>(thread) * part_; }
  std::int64_t part() const { return part_; }

 private:
  static constexpr std::size_t huge_page = std::size_t{1} << 21;
  std::int64_t part_;
  std::uint8_t* memory_;
};

void check_bytes(std::int64_t bytes, int threads) {
  if (bytes / threads < read_granule) {
    throw std::invalid_argument(
        "bytes: expected at least " + std::to_string(read_granule) + " for each of " + std::to_string(threads) +
        " threads, got " + std::to_string(bytes));
  }
}

}  // namespace

double int8_peak(Isa isa, const Sampling& sampling) {
  const LimitKernels& kernels = limits_of(isa);
  const double rate =
      Sampler(sampling).best_rate([&](std::size_t, std::int64_t rounds) { return kernels.int8_dot(rounds); });
  return rate * static_cast<double>(kernels.int8_dot_operations * sampling.threads);
}

double fma_peak(Isa isa, const Sampling& sampling) {
  const LimitKernels& kernels = limits_of(isa);
  const double rate =
      Sampler(sampling).best_rate([&](std::size_t, std::int64_t rounds) { return kernels.fma(rounds); });
  return rate * static_cast<double>(kernels.fma_operations * sampling.threads);
}

double read_bandwidth(std::int64_t bytes, const Sampling& sampling) {
  Sampler sampler(sampling);
  check_bytes(bytes, sampling.threads);
  const ThreadBuffers buffers(bytes, sampling.threads);
  const auto part = static_cast<std::size_t>(buffers.part());
  // Each thread touches its part first, so that it lies in memory near to it.
  sampler.on_each_thread([&](std::size_t thread) { std::memset(buffers.of(thread), 1, part); });
  double best = 0.0;
  for (const Read read : widest_limits().read) {
    const double rate = sampler.best_rate([&](std::size_t thread, std::int64_t rounds) {
      std::uint64_t seen = 0;
      for (std::int64_t round = 0; round < rounds; ++round) seen ^= read(buffers.of(thread), buffers.part());
      return seen;
    });
    best = std::max(best, rate);
  }
  return best * static_cast<double>(buffers.part() * sampling.threads);
}

double copy_bandwidth(std::int64_t bytes, const Sampling& sampling) {
  Sampler sampler(sampling);
  check_bytes(bytes, sampling.threads);
  const ThreadBuffers from(bytes, sampling.threads);
  const ThreadBuffers to(bytes, sampling.threads);
  const auto part = static_cast<std::size_t>(from.part());
  sampler.on_each_thread([&](std::size_t thread) {
    std::memset(from.of(thread), 1, part);
    std::memset(to.of(thread), 0, part);
  });
  const double rate = sampler.best_rate([&](std::size_t thread, std::int64_t rounds) {
    for (std::int64_t round = 0; round < rounds; ++round) {
      std::memcpy(to.of(thread), from.of(thread), part);
      __asm__ volatile("" : : "r"(to.of(thread)) : "memory");  // each copy counts as used
    }
    return std::uint64_t{to.of(thread)[0]};
  });
  return rate * static_cast<double>(from.part() * sampling.threads);
}

}  // namespace bittensor
