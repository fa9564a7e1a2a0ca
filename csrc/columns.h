// Neighbouring columns of a matrix, as many as a register holds: walked from row to row, what
// belongs to a column (its constants, its sums) stays in registers.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "math.h"
#include "width.h"

KDGEN_BEGIN

template <int W>
struct Columns {
  typedef float type __attribute__((vector_size(4 * W)));
  typedef float anywhere __attribute__((vector_size(4 * W), aligned(4), may_alias));
};

template <>
struct Columns<1> {
  typedef float type, anywhere;
};

template <int W>
using Values = typename Columns<W>::type;

// Not with memcpy, which GCC splits into halves for AVX2, and a register then waits for both.
template <int W>
KDGEN_INLINE Values<W> load_columns(const float* from) {
  return *reinterpret_cast<const typename Columns<W>::anywhere*>(from);
}

template <int W>
KDGEN_INLINE void store_columns(float* to, const Values<W>& v) {
  *reinterpret_cast<typename Columns<W>::anywhere*>(to) = v;
}

// f(i) for every lane i.
template <int W, class Function>
KDGEN_INLINE Values<W> lanes(const Function& f) {
  float t[W];
#pragma omp simd
  for (int i = 0; i < W; ++i) t[i] = f(i);
  return load_columns<W>(t);
}

// f of every lane, for scalar functions that vectorise.
template <int W, class Function>
KDGEN_INLINE Values<W> each_lane(const Values<W>& v, const Function& f) {
  float t[W];
  store_columns<W>(t, v);
  return lanes<W>([&](int i) { return f(t[i]); });
}

template <int W>
KDGEN_INLINE Values<W> fused_lanes(const Values<W>& a, const Values<W>& b, const Values<W>& c) {
  float x[W], y[W], z[W];
  store_columns<W>(x, a);
  store_columns<W>(y, b);
  store_columns<W>(z, c);
  return lanes<W>([&](int i) { return fused(x[i], y[i], z[i]); });
}

// Rows of T as floats: themselves, or converted as a whole, because conversions vectorise over long
// rows only.
template <class T>
class Floats {
 public:
  Floats(std::int64_t rows, std::int64_t width) : rows_(rows), width_(width), room_(own_) {
    if (rows * width <= kUsual) return;
    more_.reset(new float[static_cast<std::size_t>(rows * width)]);
    room_ = more_.get();
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  const float* read(const T* from, std::int64_t stride) const {
    for (std::int64_t r = 0; r < rows_; ++r, from += stride) {
#pragma omp simd
      for (std::int64_t c = 0; c < width_; ++c) room_[r * width_ + c] = load(from[c]);
    }
    return room_;
  }

  float* place(T*) const { return room_; }

  void write(T* to, std::int64_t stride) const {
    for (std::int64_t r = 0; r < rows_; ++r, to += stride) {
#pragma omp simd
      for (std::int64_t c = 0; c < width_; ++c) store(to + c, room_[r * width_ + c]);
    }
  }

  // From one row of floats to the next, where it is this for T.
  std::int64_t stride(std::int64_t) const { return width_; }

 private:
  // A block of rows, unless one row alone is longer.
  static constexpr std::int64_t kUsual = 8192;

  std::int64_t rows_, width_;
  float* room_;
  std::unique_ptr<float[]> more_;
  float own_[kUsual];
};

template <>
class Floats<float> {
 public:
  Floats(std::int64_t, std::int64_t) {}
  const float* read(const float* from, std::int64_t) const { return from; }
  float* place(float* to) const { return to; }
  void write(float*, std::int64_t) const {}
  std::int64_t stride(std::int64_t own) const { return own; }
};

// Calls with the first of each run of columns and how many they are, a constant of its type.
template <class Call>
inline void each_columns(std::int64_t width, const Call& call) {
  std::int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) call(c, std::integral_constant<int, kWidth>());
  for (; kWidth > 4 && c + 4 <= width; c += 4) call(c, std::integral_constant<int, 4>());
  for (; c < width; ++c) call(c, std::integral_constant<int, 1>());
}

KDGEN_END
