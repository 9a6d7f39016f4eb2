#pragma once

/// Buffers of exactly the needed size between pages that cannot be accessed, so that a kernel that reads or writes one
/// byte too many at the guarded side crashes. The other side is covered by poison, which shows writes.

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "check.hpp"

enum class Side : std::uint8_t { front, back };  // where the buffer touches a guard page
inline constexpr Side sides[] = {Side::front, Side::back};
inline const char* name_of(Side side) {
  return side == Side::front ? "front" : "back";
}

inline constexpr unsigned char poison = 0xA5;

/// Prints what was being checked, then lets the fault happen again for whoever handled it before.
inline void install_fault_message() {
  static struct sigaction before;
  static bool installed = false;
  if (installed) return;
  installed = true;
  struct sigaction action{};
  action.sa_handler = [](int) {
    constexpr char message[] = "access outside of a guarded buffer, with: ";
    static_cast<void>(!write(STDERR_FILENO, message, sizeof message - 1));
    static_cast<void>(!write(STDERR_FILENO, check::context, std::strlen(check::context)));
    static_cast<void>(!write(STDERR_FILENO, "\n", 1));
    sigaction(SIGSEGV, &before, nullptr);
  };
  sigaction(SIGSEGV, &action, &before);
}

/// `count` values of T, all bytes poison at first.
template <class T>
class Guarded {
 public:
  Guarded(std::int64_t count, Side side) : count_(static_cast<std::size_t>(count)) {
    install_fault_message();
    const std::size_t bytes = count_ * sizeof(T);
    usable_ = (bytes + page - 1) / page * page;
    if (usable_ == 0) usable_ = page;
    void* mapped = mmap(nullptr, usable_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) std::abort();
    mapped_ = static_cast<unsigned char*>(mapped);
    unsigned char* first = mapped_ + page;
    if (mprotect(first, usable_, PROT_READ | PROT_WRITE) != 0) std::abort();
    std::memset(first, poison, usable_);
    data_ = reinterpret_cast<T*>(side == Side::front ? first : first + usable_ - bytes);
  }
  Guarded(std::span<const T> values, Side side) : Guarded(static_cast<std::int64_t>(values.size()), side) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size_bytes());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(mapped_, usable_ + 2 * page); }

  T* data() { return data_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }

  /// True if nothing was written beside the buffer.
  bool intact() const {
    const auto* begin = reinterpret_cast<const unsigned char*>(data_);
    const auto is_poison = [](const unsigned char* from, const unsigned char* to) {
      while (from != to && *from == poison) ++from;
      return from == to;
    };
    return is_poison(mapped_ + page, begin) && is_poison(begin + count_ * sizeof(T), mapped_ + page + usable_);
  }

 private:
  static inline const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::size_t count_;
  std::size_t usable_ = 0;
  unsigned char* mapped_ = nullptr;
  T* data_ = nullptr;
};
