#include "bittensor/team.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

#include "shares.hpp"

namespace bittensor {
namespace {

/// Memory that a later loop will read. One thread sets it while others read it: a mixture of two would be advice too.
struct Expected {
  std::atomic<const char*> begin{nullptr};
  std::atomic<std::int64_t> bytes{0};
};

/// Waits busily, and after a while lets other threads run. Meanwhile it fetches what the thread will read.
class Wait {
 public:
  Wait(const Expected& expected, std::int64_t share, std::int64_t shares)
      : expected_(expected), share_(share), shares_(shares) {}

  void restart() { times_ = 0; }

  void once() {
    constexpr std::uint32_t busy = 2000;
    if (++times_ >= busy) {
      std::this_thread::yield();
    } else if (!fetch()) {
      __builtin_ia32_pause();
    }
  }

  /// Once in a while: some microseconds.
  bool is_long() const {
    constexpr std::uint32_t some = 64;
    return times_ % some == 0;
  }

 private:
  /// Fetches a little more of the thread's share of what is expected; false if there is none.
  bool fetch() {
    constexpr std::int64_t most = std::int64_t{256} << 10;  // what the second-level cache can spare
    constexpr std::int64_t line = 64;
    const char* memory = expected_.begin.load(std::memory_order_relaxed);
    if (memory == nullptr) return false;
    if (memory != memory_) {
      const std::int64_t bytes = expected_.bytes.load(std::memory_order_relaxed);
      const std::int64_t begin = share_begin(bytes, share_, shares_);
      memory_ = memory;
      next_ = memory + begin;
      end_ = next_ + std::min(share_begin(bytes, share_ + 1, shares_) - begin, most);
    }
    if (next_ >= end_) return false;
    for (int i = 0; i < 4; ++i) __builtin_prefetch(next_ + i * line, 0, 2);
    next_ += 4 * line;
    return true;
  }

  const Expected& expected_;
  std::int64_t share_;
  std::int64_t shares_;
  std::uint32_t times_ = 0;
  const char* memory_ = nullptr;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
};

/// Loops are numbered. Each thread has a share of a loop, which it takes in chunks, large ones first. When it has
/// waited for others for some time it takes chunks of theirs: a thread may come late, or never. Not at once, because
/// what the two have to tell each other takes as long as a small chunk.
class State {
 public:
  explicit State(int thread_count) : shares_(static_cast<std::size_t>(thread_count)) {}

  bool leads() { return !led_.exchange(true, std::memory_order_acq_rel); }

  void lead(std::int64_t own_share, void (*program)(const ParallelFor&, void*), void* context) {
    Leader leader{*this, own_share, Wait(expected_, own_share, shares())};
    const auto run = [](void* of, std::int64_t count, ParallelFor::Body body, void* with) {
      static_cast<Leader*>(of)->share_out({count, body, with});
    };
    const auto expect = [](void* of, const void* memory, std::int64_t bytes) {
      Expected& expected = static_cast<Leader*>(of)->state.expected_;
      expected.bytes.store(bytes, std::memory_order_relaxed);
      expected.begin.store(static_cast<const char*>(memory), std::memory_order_relaxed);
    };
    try {
      program(ParallelFor(run, expect, &leader, static_cast<int>(shares_.size())), context);
    } catch (...) {
      error_ = std::current_exception();
    }
    number_.store(the_end, std::memory_order_release);
  }

  void help(std::int64_t own_share) {
    std::uint64_t seen = 0;
    for (Wait wait(expected_, own_share, shares());;) {
      const std::uint64_t number = number_.load(std::memory_order_acquire);
      if (number == the_end) return;
      std::int64_t ran = 0;
      if (number != seen) {
        seen = number;
        wait.restart();
        ran = run_share(own_share, number);
      } else {
        wait.once();
        if (number > 0 && wait.is_long()) ran = help_others(own_share, number);
      }
      if (ran > 0) finished_.fetch_add(ran, std::memory_order_release);
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr std::uint64_t the_end = std::numeric_limits<std::uint64_t>::max();

  /// Of each share: 1/2, 1/4, 1/8 of it and so on; the last two are equal. Some are empty where a share is small.
  static constexpr std::int64_t chunks = 5;

  struct Loop {
    std::int64_t count = 0;
    ParallelFor::Body body = nullptr;
    void* context = nullptr;
  };

  /// The thread that runs the program.
  struct Leader {
    State& state;
    std::int64_t own_share;
    Wait wait;

    void share_out(const Loop& loop) {
      const std::uint64_t number = state.number_.load(std::memory_order_relaxed) + 1;
      state.loop_ = loop;
      state.finished_.store(0, std::memory_order_relaxed);
      state.number_.store(number, std::memory_order_release);
      std::int64_t others = state.shares() * chunks - state.run_share(own_share, number);
      wait.restart();
      while (state.finished_.load(std::memory_order_acquire) < others) {
        wait.once();
        if (wait.is_long()) others -= state.help_others(own_share, number);
      }
    }
  };

  /// The number of a loop times `numbers`, plus how many chunks of this share are taken; on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> taken{0};
  };
  static constexpr std::uint64_t numbers = 8;
  static_assert(chunks < numbers);

  std::int64_t shares() const { return static_cast<std::int64_t>(shares_.size()); }

  /// Runs the chunks of a share that are not taken, and returns how many.
  std::int64_t run_share(std::int64_t share, std::uint64_t number) {
    std::int64_t ran = 0;
    while (run_chunk(share, number)) ++ran;
    return ran;
  }

  std::int64_t help_others(std::int64_t own_share, std::uint64_t number) {
    std::int64_t ran = 0;
    for (std::int64_t i = 1; i < shares(); ++i) ran += run_share((own_share + i) % shares(), number);
    return ran;
  }

  /// Runs the next chunk of a share, if it has one. `loop_` is read when the chunk is taken: until that is finished it
  /// stays what it is.
  bool run_chunk(std::int64_t share, std::uint64_t number) {
    std::atomic<std::uint64_t>& taken = shares_[static_cast<std::size_t>(share)].taken;
    std::uint64_t before = taken.load(std::memory_order_relaxed);
    std::uint64_t chunk = 0;
    do {
      if (before / numbers > number) return false;
      chunk = before / numbers < number ? 0 : before % numbers;
      if (chunk >= chunks) return false;
    } while (!taken.compare_exchange_weak(
        before, number * numbers + chunk + 1, std::memory_order_acq_rel, std::memory_order_relaxed));
    const std::int64_t end = share_begin(loop_.count, share + 1, shares());
    const std::int64_t length = end - share_begin(loop_.count, share, shares());
    const std::int64_t from = end - (length >> chunk);
    const std::int64_t to = chunk + 1 < chunks ? end - (length >> (chunk + 1)) : end;
    if (from < to) loop_.body(from, to, loop_.context);
    return true;
  }

  std::vector<Share> shares_;
  std::exception_ptr error_;
  std::atomic<bool> led_{false};
  // What a loop begins with is on one cache line, what it ends with on another.
  alignas(64) std::atomic<std::uint64_t> number_{0};
  Loop loop_;
  alignas(64) std::atomic<std::int64_t> finished_{0};
  alignas(64) Expected expected_;
};

}  // namespace

void Team::run_program(const ParallelFor& parallel, Program program, void* context) {
  if (parallel.thread_count() == 1) {
    program(ParallelFor(), context);
    return;
  }
  State state(parallel.thread_count());
  parallel(parallel.thread_count(), [&](std::int64_t begin, std::int64_t) {
    if (state.leads()) {
      state.lead(begin, program, context);
    } else {
      state.help(begin);
    }
  });
  state.rethrow();
}

}  // namespace bittensor
