#include "pages.h"

#include <cstdlib>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace kdgen::engine {

namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kHuge = std::int64_t{2} << 20;

}  // namespace

Pages::Pages(std::int64_t bytes) {
  if (bytes <= 0) return;
  const std::int64_t unit = bytes < kHuge ? kLine : kHuge;
  const std::int64_t whole = (bytes + unit - 1) / unit * unit;
  start_ = static_cast<char*>(
      std::aligned_alloc(static_cast<std::size_t>(unit), static_cast<std::size_t>(whole)));
  if (!start_) throw std::bad_alloc();
  bytes_ = bytes;
#ifdef __linux__
  if (unit == kHuge) madvise(start_, static_cast<std::size_t>(whole), MADV_HUGEPAGE);
#endif
}

Pages::~Pages() { std::free(start_); }

Pages::Pages(Pages&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(start_, other.start_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace kdgen::engine
