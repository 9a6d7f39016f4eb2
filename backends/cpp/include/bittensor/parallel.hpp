#pragma once

/// How the library runs in parallel: through a function that its caller brings.

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>

namespace bittensor {

/// A parallel loop over [0, count), split into consecutive ranges, each run once on some thread. The library never
/// starts threads of its own: inside torch it runs on torch's threads, in other programs on a `ThreadPool`.
///
/// All these threads have the floating-point environment that a program starts with: rounding to nearest, and subnormal
/// numbers neither flushed to zero nor read as zero. Otherwise results depend on which thread computes them.
class ParallelFor {
 public:
  using Body = void (*)(std::int64_t begin, std::int64_t end, void* context);
  using Run = void (*)(void* threads, std::int64_t count, Body body, void* context);

  /// Whether the threads have to be woken for a loop, which takes microseconds, or wait for it.
  enum class Threads : std::uint8_t { asleep, awake };

  /// Tells `threads` what memory a loop will read.
  using Expect = void (*)(void* threads, const void* memory, std::int64_t bytes);

  /// Runs everything on the calling thread.
  ParallelFor() = default;

  /// `run` calls `body(begin, end, context)`, which does not throw, for ranges that cover [0, count) and returns when
  /// all are done. A thread that waits for others in it may meanwhile run other operations of the library. A
  /// `thread_count` below 1 counts as 1: std::thread::hardware_concurrency() is 0 where it knows none.
  ParallelFor(Run run, void* threads, int thread_count)
      : run_(run), threads_(threads), thread_count_(thread_count < 1 ? 1 : thread_count) {}

  /// The same on threads that wait for loops, and meanwhile may fetch what `expect` names.
  ParallelFor(Run run, Expect expects, void* threads, int thread_count)
      : run_(run),
        expect_(expects),
        threads_(threads),
        thread_count_(thread_count < 1 ? 1 : thread_count),
        state_(Threads::awake) {}

  int thread_count() const { return thread_count_; }

  /// Whether its threads wait for loops; then each has a share of a loop, as many of equal length as there are threads,
  /// which it takes in parts from the front, and helps others with theirs.
  bool is_awake() const { return state_ == Threads::awake; }

  /// Whether sharing out `work` saves time, where `least` makes up for waking threads.
  bool pays(std::int64_t work, std::int64_t least) const {
    constexpr std::int64_t cheaper = 16;
    return work >= (state_ == Threads::awake ? least / cheaper : least);
  }

  /// A later loop will read `bytes` of memory, a part for each index, from the first to the last. Advice: threads that
  /// have nothing to do yet may bring it into their caches.
  void expect(const void* memory, std::int64_t bytes) const {
    if (expect_ != nullptr) expect_(threads_, memory, bytes);
  }

  /// Calls `f(begin, end)`. If some of these calls throw, the exception of one of them is thrown again when all ranges
  /// are done: threads of others, which wait for a range to end, never see it.
  template <class F>
  void operator()(std::int64_t count, F&& f) const {
    if (count <= 0) return;
    if (run_ == nullptr || count == 1) {
      f(std::int64_t{0}, count);
      return;
    }
    Loop<std::remove_reference_t<F>> loop{f};
    run_(threads_, count, loop.run_range, &loop);
    if (loop.error != nullptr) std::rethrow_exception(loop.error);
  }

 private:
  template <class F>
  struct Loop {
    F& f;
    std::exception_ptr error = nullptr;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;

    static void run_range(std::int64_t begin, std::int64_t end, void* context) noexcept {
      Loop& loop = *static_cast<Loop*>(context);
      try {
        loop.f(begin, end);
      } catch (...) {
        if (!loop.failed.test_and_set()) loop.error = std::current_exception();
      }
    }
  };

  Run run_ = nullptr;
  Expect expect_ = nullptr;
  void* threads_ = nullptr;
  int thread_count_ = 1;
  Threads state_ = Threads::asleep;
};

}  // namespace bittensor
