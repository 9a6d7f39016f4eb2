#pragma once

/// What each thread of a loop gets: rows of its own, or indices of which threads that are done early take over what
/// others have not begun, because cores differ in speed, where they are of two kinds or other programs run on them.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "bittensor/parallel.hpp"
#include "rounding.hpp"

namespace bittensor {

/// Threads of a product with so many rows each have rows of their own: each prepares the rows that it multiplies, so
/// that nothing travels between the caches and they wait for each other once. Otherwise all share the prepared rows and
/// take columns.
inline constexpr std::int64_t least_own_rows = 3;

/// A weight that all threads can keep in their second-level caches.
inline constexpr std::int64_t cached_weight_bytes = std::int64_t{512} << 10;

/// A weight so large is expected in memory and not in a cache: a model has more than one such weight.
inline constexpr std::int64_t memory_weight_bytes = std::int64_t{4} << 20;

/// Rows that each thread needs to have rows of its own. Where a weight does not stay in the caches they are a whole
/// panel: then no thread reads more of the weight for each of its products than if all took columns.
inline std::int64_t own_rows_of(std::int64_t weight_bytes, std::int64_t least, std::int64_t panel_rows) {
  return weight_bytes > cached_weight_bytes ? std::max(panel_rows, least) : least;
}

/// The same where a kernel decodes a weight once for all rows, as it does on each thread that has rows of its own: a
/// row for so many outputs, at least `least` and at most 32.
inline std::int64_t own_rows_where_decoded(std::int64_t outputs, std::int64_t outputs_of_row, std::int64_t least) {
  constexpr std::int64_t most = 32;
  return std::clamp(outputs / outputs_of_row, least, most);
}

/// Whether no thread gets over a quarter more than the mean, where `threads` share out `count` indices.
inline bool is_even(std::int64_t count, std::int64_t threads) {
  return 4 * threads * ceil_divide(count, threads) <= 5 * count;
}

/// Into how many ranges rows are divided, at most `most`, so that `threads` share out `count` runs of columns for each
/// of them evenly.
inline std::int64_t even_ranges(std::int64_t count, std::int64_t threads, std::int64_t most) {
  std::int64_t ranges = 1;
  while (ranges < most && !is_even(count * ranges, threads)) ++ranges;
  return ranges;
}

/// Whether each thread of `loop` gets rows of its own, at least `least`.
inline bool has_own_rows(const ParallelFor& loop, std::int64_t rows, std::int64_t least) {
  const std::int64_t threads = loop.thread_count();
  return threads > 1 && rows >= threads * least && is_even(rows, threads);
}

/// [0, count) in `shares` shares of consecutive indices: where share `i` begins, the one behind the last at `count`.
inline std::int64_t share_begin(std::int64_t count, std::int64_t i, std::int64_t shares) {
  return count * i / shares;
}

/// Where the share that holds `index` ends.
inline std::int64_t share_end(std::int64_t count, std::int64_t index, std::int64_t shares) {
  return share_begin(count, (shares * (index + 1) - 1) / count + 1, shares);
}

/// Indices that a thread takes, and behind them, before `to_come`, those that it takes next, unless others help it.
struct Taken {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t to_come = 0;
};

/// The indices [0, count) in shares of consecutive ones, taken a few at a time: by the thread that has the share from
/// the front, so that it reads memory in one direction, and by others from the back.
class Shares {
 public:
  /// `count` is less than 2^32. At most `unit` indices are taken at a time.
  Shares(std::int64_t count, std::int64_t shares, std::int64_t unit)
      : unit_(unit), left_(static_cast<std::size_t>(shares)) {
    for (std::int64_t i = 0; i < shares; ++i) {
      share(i).store(pair(share_begin(count, i, shares), share_begin(count, i + 1, shares)), std::memory_order_relaxed);
    }
  }

  /// Sets `taken` to what comes next for the thread that has share `own`; false if nothing is left of any.
  bool take(std::int64_t own, Taken& taken) {
    if (take_of(share(own), Side::front, taken)) return true;
    const auto shares = static_cast<std::int64_t>(left_.size());
    for (std::int64_t i = 1; i < shares; ++i) {
      if (take_of(share((own + i) % shares), Side::back, taken)) return true;
    }
    return false;
  }

 private:
  enum class Side : std::uint8_t { front, back };

  /// Begin and end of what is left of a share, in one word; on a cache line of its own.
  struct alignas(64) Left {
    std::atomic<std::uint64_t> range{0};
  };

  static std::uint64_t pair(std::int64_t begin, std::int64_t end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
  }

  std::atomic<std::uint64_t>& share(std::int64_t i) { return left_[static_cast<std::size_t>(i)].range; }

  /// Nothing is read that another thread wrote but the word itself, so that no order of memory is asked for.
  bool take_of(std::atomic<std::uint64_t>& range, Side side, Taken& taken) const {
    std::uint64_t before = range.load(std::memory_order_relaxed);
    std::uint64_t after = 0;
    do {
      const auto first = static_cast<std::int64_t>(before >> 32);
      const auto last = static_cast<std::int64_t>(before & 0xFFFFFFFFU);
      if (first == last) return false;
      const std::int64_t count = last - first < unit_ ? last - first : unit_;
      taken.begin = side == Side::front ? first : last - count;
      taken.end = taken.begin + count;
      taken.to_come = last;
      after = side == Side::front ? pair(taken.end, last) : pair(first, taken.begin);
    } while (!range.compare_exchange_weak(before, after, std::memory_order_relaxed));
    return true;
  }

  std::int64_t unit_;
  std::vector<Left> left_;
};

/// Whether it pays that threads of `loop` help each other with so many products: fewer are done before one could help,
/// and threads that are awake help in any loop.
inline bool help_pays(const ParallelFor& loop, std::int64_t products) {
  constexpr std::int64_t least = std::int64_t{1} << 23;
  return !loop.is_awake() && loop.thread_count() > 1 && products >= least;
}

/// Calls f(next) on each thread of `loop`. As long as next(taken) is true, that is a range for this thread; those of
/// all threads cover [0, count). With a `unit` threads help each other, which pays where they have some units each and
/// a unit takes microseconds; with 0 every thread has one range, or if it is awake a share that the loop takes in
/// parts.
template <class F>
void share_out(const ParallelFor& loop, std::int64_t count, std::int64_t unit, const F& f) {
  if (unit == 0) {
    loop(count, [&](std::int64_t from, std::int64_t to) {
      bool is_left = true;
      f([&](Taken& taken) {
        taken = {from, to, loop.is_awake() ? share_end(count, from, loop.thread_count()) : to};
        return std::exchange(is_left, false);
      });
    });
    return;
  }
  Shares shares(count, loop.thread_count(), unit);
  loop(loop.thread_count(), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t own = first; own < last; ++own) {
      f([&](Taken& taken) { return shares.take(own, taken); });
    }
  });
}

}  // namespace bittensor
