// The two sides of a product of matrices as they lie in memory, and a few rows of it from start to
// end: `Operands<T>` for whatever is multiplied.
//
// Floats and bfloat16 are kept as they are. Bytes have a scale for every row and every column: it
// times integers of at most 127 is the value, within half a scale. Products and sums of the
// integers are exact.
#pragma once

#include "multiply.h"

KDGEN_BEGIN
namespace engine {

template <class T>
struct Operands {
  // Whether rows are rounded: all values of one are needed then to know its scale.
  static constexpr bool kRounds = false;

  // From one row of k values to the next, and of a panel of k rows, in values of T.
  static KDGEN_MEMBER std::int64_t row(std::int64_t k) { return k; }
  static KDGEN_MEMBER std::int64_t panel(std::int64_t k, std::int64_t width) { return k * width; }

  // A panel of a matrix (k, width).
  static void pack(const float* dense, std::int64_t k, std::int64_t width, T* panel) {
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t o = 0; o < width; ++o) {
        kdgen::store(panel + place_in_panel<T>(i, o, width), dense[i * width + o]);
      }
    }
  }

  // to (R, V registers) = rows (R, k) times the panel, or more by that if not `fresh`.
  template <int R, int V>
  static KDGEN_MEMBER void product(const T* const* rows, std::int64_t k, const T* panel,
                                   const char* ahead, bool fresh, float* to) {
    Sums<T, R, V> sums = {};
    if (!fresh) {
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) sums.at[r][v] = load(to + (r * V + v) * kWidth);
      }
    }
    multiply<T, R, V>(rows, k, panel, ahead, sums);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) store(to + (r * V + v) * kWidth, sums.at[r][v]);
    }
  }
};

// Of what is at most `largest` in magnitude. Infinity and NaN make NaN of all that they share a
// scale with; what is smaller than 2^-100 counts as 0.
struct Scale {
  float scale, inverse;
  KDGEN_MEMBER explicit Scale(float largest) {
    const bool finite = largest < __builtin_inff(), counts = finite && largest >= 0x1p-100f;
    scale = counts ? largest / 127 : finite ? 0 : __builtin_nanf("");
    inverse = counts ? 127 / largest : 0;
  }
};

// The larger magnitude, lane by lane, as bits: NaN is the largest there.
KDGEN_INLINE Ints larger_magnitude(Ints most, Vec v) {
  const Ints size = (Ints)v & 0x7fffffff;
  return size > most ? size : most;
}

// Integers plus 128, in the low bytes.
KDGEN_INLINE Bits nearest(Vec v, Vec inverse) {
  return (Bits)fused(v, inverse, all(12582912.0f + 128)) & 0xffu;  // 1.5 · 2^23: no fractions
}

// A row of k values, and behind them its scale. A panel begins with what its sums begin with, and
// with its scales, one a column.
template <>
struct Operands<Int8> {
  static constexpr bool kRounds = true;
  static constexpr std::int64_t kHead = 8;  // bytes of a column

  static KDGEN_MEMBER std::int64_t row(std::int64_t k) { return k + kBlock; }
  static KDGEN_MEMBER std::int64_t panel(std::int64_t k, std::int64_t width) {
    return (k + kHead) * width;
  }

  template <class Act>
  static KDGEN_MEMBER void quantise(const Act* from, std::int64_t k, Int8* to) {
    typedef std::uint8_t Bytes __attribute__((vector_size(kWidth)));
    Ints most = {};
    for (std::int64_t c = 0; c < k; c += kWidth) most = larger_magnitude(most, load(from + c));
    const Scale scale(largest(most));
    for (std::int64_t c = 0; c < k; c += kWidth) {
      const Bits values = nearest(load(from + c), all(scale.inverse));
      const Bytes bytes = __builtin_convertvector(values, Bytes);
      std::memcpy(to + c, &bytes, sizeof bytes);
    }
    std::memcpy(to + k, &scale.scale, 4);
  }

  static void pack(const float* dense, std::int64_t k, std::int64_t width, Int8* panel) {
    auto* begin = reinterpret_cast<std::int32_t*>(panel);
    auto* scales = reinterpret_cast<float*>(begin + width);
    for (std::int64_t o = 0; o < width; o += kWidth) {
      Ints most = {}, sum = {};
      for (std::int64_t i = 0; i < k; ++i) {
        most = larger_magnitude(most, load(dense + i * width + o));
      }
      Vec inverse = {};
      for (int l = 0; l < kWidth; ++l) {
        const Scale scale(float_of(static_cast<std::uint32_t>(most[l])));
        scales[o + l] = scale.scale;
        inverse[l] = scale.inverse;
      }
      for (std::int64_t i = 0; i < k; ++i) {
        const Ints values = (Ints)nearest(load(dense + i * width + o), inverse) - 128;
        Int8* const to = panel + kHead * width + place_in_panel<Int8>(i, o, width);
        for (int l = 0; l < kWidth; ++l) to[4 * l].bits = static_cast<std::uint8_t>(values[l]);
        sum += values;
      }
      for (int l = 0; l < kWidth; ++l) begin[o + l] = -128 * sum[l];
    }
  }

  template <int R, int V>
  static KDGEN_MEMBER void product(const Int8* const* rows, std::int64_t k, const Int8* panel,
                                   const char* ahead, bool fresh, float* to) {
    constexpr int width = V * kWidth;
    Sums<Int8, R, V> sums;
    for (int r = 0; r < R; ++r) std::memcpy(sums.at[r], panel, 4 * width);
    multiply<Int8, R, V>(rows, k, panel + kHead * width, ahead, sums);
    const float* scales = reinterpret_cast<const float*>(panel) + width;
    for (int r = 0; r < R; ++r) {
      float scale;
      std::memcpy(&scale, rows[r] + k, 4);
      for (int v = 0; v < V; ++v) {
        float* const at = to + (r * V + v) * kWidth;
        const Vec sum = __builtin_convertvector(sums.at[r][v], Vec);
        const Vec before = fresh ? Vec{} : load(at);
        store(at, fused(sum, all(scale) * load(scales + v * kWidth), before));
      }
    }
  }

 private:
  static KDGEN_MEMBER float largest(Ints most) {
    std::int32_t size[kWidth];
    std::memcpy(size, &most, sizeof size);
    for (int half = kWidth / 2; half; half /= 2) {
      for (int l = 0; l < half; ++l)
        if (size[l] < size[l + half]) size[l] = size[l + half];
    }
    return float_of(static_cast<std::uint32_t>(size[0]));
  }
};

}  // namespace engine
KDGEN_END
