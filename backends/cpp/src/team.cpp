#include "bittensor/team.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

namespace bittensor {
namespace {

/// Waits busily, and after a while lets other threads run.
class Wait {
 public:
  void once() {
    constexpr int busy = 2000;
    if (++times_ < busy) {
      __builtin_ia32_pause();
    } else {
      std::this_thread::yield();
    }
  }

 private:
  int times_ = 0;
};

/// Loops are numbered, and cut into chunks. Each thread has a share of the chunks, and takes those of others when its
/// own are taken: a thread that comes late or is slow delays a loop by a chunk at most.
class State {
 public:
  explicit State(int thread_count) : shares_(static_cast<std::size_t>(thread_count)) {}

  bool leads() { return !led_.exchange(true, std::memory_order_acq_rel); }

  void lead(std::int64_t own_share, void (*program)(const ParallelFor&, void*), void* context) {
    own_share_ = own_share;
    const auto run = [](void* state, std::int64_t count, ParallelFor::Body body, void* with) {
      static_cast<State*>(state)->share_out({count, body, with});
    };
    try {
      program(ParallelFor(run, this, static_cast<int>(shares_.size()), ParallelFor::Threads::awake), context);
    } catch (...) {
      error_ = std::current_exception();
    }
    published_.store(the_end, std::memory_order_release);
  }

  void help(std::int64_t own_share) {
    std::uint64_t seen = 0;
    for (Wait wait;;) {
      const std::uint64_t published = published_.load(std::memory_order_acquire);
      if (published == the_end) return;
      if (published == seen) {
        wait.once();
        continue;
      }
      seen = published;
      wait = {};
      if (const std::int64_t ran = work(own_share, published); ran > 0) {
        finished_.fetch_add(ran, std::memory_order_release);
      }
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr std::uint64_t the_end = std::numeric_limits<std::uint64_t>::max();

  struct Loop {
    std::int64_t count = 0;
    ParallelFor::Body body = nullptr;
    void* context = nullptr;
  };

  /// The number of a loop in the high half, and how many chunks of this share are taken; on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> taken{0};
  };

  static std::uint64_t pair(std::uint64_t number, std::uint64_t chunks) { return number << 32 | chunks; }
  static std::uint64_t number_of(std::uint64_t pair) { return pair >> 32; }
  static std::int64_t chunks_of(std::uint64_t pair) { return static_cast<std::uint32_t>(pair); }
  std::int64_t shares() const { return static_cast<std::int64_t>(shares_.size()); }

  /// Runs chunks of the published loop as long as there are any, and returns how many.
  std::int64_t work(std::int64_t own_share, std::uint64_t published) {
    std::int64_t ran = 0;
    for (std::int64_t i = 0; i < shares(); ++i) {
      const std::int64_t share = (own_share + i) % shares();
      while (run_chunk(share, published)) ++ran;
    }
    return ran;
  }

  /// Runs the next chunk of a share, if it has one. `loop_` is read when the chunk is taken: until that is finished it
  /// stays what it is.
  bool run_chunk(std::int64_t share, std::uint64_t published) {
    const std::int64_t chunks = chunks_of(published);
    const std::int64_t first = chunks * share / shares();
    const std::int64_t end = chunks * (share + 1) / shares();
    std::atomic<std::uint64_t>& taken = shares_[static_cast<std::size_t>(share)].taken;
    std::uint64_t before = taken.load(std::memory_order_relaxed);
    std::int64_t chunk = first;
    do {
      if (number_of(before) > number_of(published)) return false;
      chunk = number_of(before) < number_of(published) ? first : first + chunks_of(before);
      if (chunk >= end) return false;
    } while (!taken.compare_exchange_weak(
        before, pair(number_of(published), static_cast<std::uint64_t>(chunk - first + 1)), std::memory_order_acq_rel,
        std::memory_order_relaxed));
    loop_.body(loop_.count * chunk / chunks, loop_.count * (chunk + 1) / chunks, loop_.context);
    return true;
  }

  void share_out(const Loop& loop) {
    constexpr std::int64_t chunks_of_thread = 16;
    const std::int64_t chunks = std::min(loop.count, shares() * chunks_of_thread);
    const std::uint64_t published = pair(number_of(published_.load(std::memory_order_relaxed)) + 1, chunks);
    loop_ = loop;
    finished_.store(0, std::memory_order_relaxed);
    published_.store(published, std::memory_order_release);
    const std::int64_t others = chunks - work(own_share_, published);
    for (Wait wait; finished_.load(std::memory_order_acquire) < others;) wait.once();
  }

  std::vector<Share> shares_;
  std::exception_ptr error_;
  std::int64_t own_share_ = 0;
  std::atomic<bool> led_{false};
  // What a loop begins with is on one cache line, what it ends with on another.
  alignas(64) std::atomic<std::uint64_t> published_{0};
  Loop loop_;
  alignas(64) std::atomic<std::int64_t> finished_{0};
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
