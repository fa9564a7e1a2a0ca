// How the right side of a product lies in memory: in panels of as many columns as the registers
// hold, each (K, width), so that a product reads it from start to end. Of bfloat16 the two values
// that belong to one pair of K are neighbours, of bytes the four.
#pragma once

#include "factors.h"

KDGEN_BEGIN
namespace engine {

#if defined(__AVX512F__)
constexpr int kRows = 6;  // of the left side at once: kRows times kMostVecs sums stay in registers
constexpr int kMostVecs = 4;
#elif defined(__AVX__)
constexpr int kRows = 6;
constexpr int kMostVecs = 2;
#else
constexpr int kRows = 2;
constexpr int kMostVecs = 4;
#endif
constexpr std::int64_t kPanel = kMostVecs * kWidth;

// Of the panel that begins where `left` columns (a multiple of 16) are left.
KDGEN_INLINE std::int64_t panel_width(std::int64_t left) {
  std::int64_t width = kPanel;
  while (width > left) width /= 2;
  return width;
}

// Where (k, column) of a panel lies.
template <class T>
KDGEN_INLINE std::int64_t place_in_panel(std::int64_t k, std::int64_t column, std::int64_t width) {
  constexpr std::int64_t unit = Factor<T>::kUnit;
  return k / unit * width * unit + column * unit + k % unit;
}

// f(first column, width) for every panel from one column (a multiple of kPanel) to another.
template <class F>
static inline void for_panels(std::int64_t from, std::int64_t to, const F& f) {
  for (std::int64_t first = from; first < to;) {
    const std::int64_t width = panel_width(to - first);
    f(first, width);
    first += width;
  }
}

}  // namespace engine
KDGEN_END
