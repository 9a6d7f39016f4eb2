// Loops whose threads take over from each other: every index once, whatever thread takes it.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <tuple>
#include <vector>

#include "../src/shares.hpp"
#include "bittensor/team.hpp"
#include "bittensor/thread_pool.hpp"
#include "check.hpp"

using bittensor::ParallelFor;
using bittensor::share_begin;
using bittensor::share_end;
using bittensor::share_out;
using bittensor::Shares;
using bittensor::Taken;

namespace {

/// The counters are plain: the end of a loop orders what its threads wrote before what is read here.
void check_loop(const ParallelFor& loop, std::int64_t count, std::int64_t unit) {
  CONTEXT("%d threads, %d indices, %d at a time", loop.thread_count(), static_cast<int>(count), static_cast<int>(unit));
  std::vector<int> visits(static_cast<std::size_t>(count), 0);
  share_out(loop, count, unit, [&](const auto& next) {
    for (Taken taken; next(taken);) {
      const auto [begin, end, to_come] = taken;
      CHECK(0 <= begin && begin < end && end <= to_come && to_come <= count);
      CHECK(unit == 0 || end - begin <= unit);
      for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
    }
  });
  CHECK(std::ranges::all_of(visits, [](int visited) { return visited == 1; }));
}

}  // namespace

TEST(every_index_is_visited_once) {
  for (const std::int64_t unit : {0, 1, 6}) {
    for (const std::int64_t count : {0, 1, 2, 11, 12, 13, 1000}) {
      check_loop({}, count, unit);
      for (const int threads : {1, 2, 3, 7}) {
        bittensor::ThreadPool pool(threads);
        for (int repeat = 0; repeat < 20; ++repeat) check_loop(pool.parallel_for(), count, unit);
      }
    }
  }
}

TEST(every_index_is_in_the_share_that_ends_behind_it) {
  for (const std::int64_t shares : {1, 2, 3, 7}) {
    for (const std::int64_t count : {1, 2, 5, 11, 12, 13}) {
      for (std::int64_t i = 0; i < shares; ++i) {
        const std::int64_t end = share_begin(count, i + 1, shares);
        for (std::int64_t index = share_begin(count, i, shares); index < end; ++index) {
          CHECK_EQUAL(share_end(count, index, shares), end);
        }
      }
    }
  }
}

TEST(a_team_tells_what_is_to_come_of_a_share) {
  for (const int threads : {1, 2, 3}) {
    bittensor::ThreadPool pool(threads);
    bittensor::Team::run(pool.parallel_for(), [&](const ParallelFor& loop) {
      for (const std::int64_t count : {2, 11, 48}) {
        check_loop(loop, count, 0);
        share_out(loop, count, 0, [&](const auto& next) {
          for (Taken taken; next(taken);) {
            std::int64_t end = 0;
            for (std::int64_t i = 1; end <= taken.begin; ++i) end = count * i / threads;
            CHECK_EQUAL(taken.to_come, end);
          }
        });
      }
    });
  }
}

TEST(rows_are_given_to_threads_that_get_about_as_many) {
  CHECK(bittensor::is_even(6, 2) && bittensor::is_even(5, 2) && bittensor::is_even(24, 8));
  CHECK(!bittensor::is_even(3, 2) && !bittensor::is_even(25, 8) && !bittensor::is_even(1, 2));
  CHECK_EQUAL(bittensor::even_ranges(3, 2, 8), 2);
  CHECK_EQUAL(bittensor::even_ranges(12, 16, 8), 4);
  CHECK_EQUAL(bittensor::even_ranges(12, 16, 3), 3);
  CHECK_EQUAL(bittensor::even_ranges(4, 2, 8), 1);
  bittensor::ThreadPool pool(2);
  CHECK(bittensor::has_own_rows(pool.parallel_for(), 6, 3));
  CHECK(!bittensor::has_own_rows(pool.parallel_for(), 5, 3));
  CHECK(!bittensor::has_own_rows(pool.parallel_for(), 3, 1));
  CHECK(!bittensor::has_own_rows({}, 100, 3));
}

TEST(a_share_is_taken_from_the_front_and_by_others_from_the_back) {
  using Range = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
  Shares shares(20, 2, 4);
  const auto take = [&](std::int64_t own) {
    Taken taken;
    return shares.take(own, taken) ? std::tuple(taken.begin, taken.end, taken.to_come) : Range(-1, -1, -1);
  };
  CHECK(take(0) == Range(0, 4, 10));
  CHECK(take(1) == Range(10, 14, 20));
  CHECK(take(1) == Range(14, 18, 20));
  CHECK(take(1) == Range(18, 20, 20));
  CHECK(take(1) == Range(6, 10, 10));
  CHECK(take(0) == Range(4, 6, 6));
  CHECK(take(0) == Range(-1, -1, -1));
  CHECK(take(1) == Range(-1, -1, -1));
}

TEST(threads_that_are_done_take_over) {
  // The second thread to come waits in its first range until all others are taken, so that the first takes them.
  constexpr std::int64_t count = 40;
  bittensor::ThreadPool pool(2);
  std::atomic<int> threads = 0;
  std::atomic<std::int64_t> taken = 0;
  std::atomic<std::int64_t> of_slow = 0;
  share_out(pool.parallel_for(), count, 1, [&](const auto& next) {
    const bool is_slow = threads.fetch_add(1) == 1;
    for (Taken own; next(own);) {
      taken.fetch_add(1);
      if (!is_slow) {
        while (threads.load() < 2) std::this_thread::yield();  // leaves the other one something
        continue;
      }
      of_slow.fetch_add(1);
      while (taken.load() < count) std::this_thread::sleep_for(std::chrono::microseconds(10));
    }
  });
  CHECK_EQUAL(taken.load(), count);
  CHECK(of_slow.load() <= 1);
}
