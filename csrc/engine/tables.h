// Copies of what a step is given, rounded up so that a register can be read anywhere.
#pragma once

#include "pages.h"
#include "vec.h"

KDGEN_BEGIN
namespace engine {

static inline Pages copied(const float* from, std::int64_t count) {
  Pages pages(4 * count);
  std::memcpy(pages.as<float>(), from, static_cast<std::size_t>(4 * count));
  return pages;
}

static inline Pages zeros(std::int64_t bytes) {
  Pages pages(bytes);
  std::memset(pages.as<char>(), 0, static_cast<std::size_t>(bytes));
  return pages;
}

KDGEN_INLINE std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
KDGEN_INLINE std::int64_t rounded_up(std::int64_t a, std::int64_t b) {
  return divided_up(a, b) * b;
}

}  // namespace engine
KDGEN_END
