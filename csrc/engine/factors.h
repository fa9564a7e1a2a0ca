// What a product of a row and a panel is made of: what a row gives at a time, and what stands
// against it for a register of columns. One float, a pair of bfloat16, or four integers.
#pragma once

#include "vec.h"

KDGEN_BEGIN
namespace engine {

// −127 … 127. In a row it is kept plus 128: the instruction multiplies bytes without a sign by
// bytes that have one.
struct Int8 {
  std::uint8_t bits;
};

template <class T>
struct Factor;

template <>
struct Factor<float> {
  static constexpr int kUnit = 1;
  typedef Vec Other;
  typedef Vec Sum;
  static KDGEN_MEMBER Vec broadcast(const float* a) { return all(*a); }
  static KDGEN_MEMBER Vec other(const float* b) { return load(b); }
  static KDGEN_MEMBER Vec add(Vec sum, Vec a, Vec b) { return a * b + sum; }
};

// Of the types of which several fill 32 bits.
template <class T>
struct Several {
  static constexpr int kUnit = 4 / sizeof(T);
  typedef Bits Other;
  static KDGEN_MEMBER Bits broadcast(const T* a) { return read<std::uint32_t>(a) - Bits{}; }
  static KDGEN_MEMBER Bits other(const T* b) { return read<Bits>(b); }

 private:
  template <class Units>
  static KDGEN_MEMBER Units read(const T* from) {
    Units units;
    std::memcpy(&units, from, sizeof units);
    return units;
  }
};

template <>
struct Factor<BFloat16> : Several<BFloat16> {
  typedef Vec Sum;
  static KDGEN_MEMBER Vec add(Vec sum, Bits a, Bits b) {
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = (Vec)(a & 0xffff0000u) * (Vec)(b & 0xffff0000u) + sum;
    return (Vec)(a << 16) * (Vec)(b << 16) + sum;
#endif
  }
};

template <>
struct Factor<Int8> : Several<Int8> {
  typedef Ints Sum;
  static KDGEN_MEMBER Ints add(Ints sum, Bits a, Bits b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
#pragma GCC unroll 4
    for (int shift = 0; shift < 32; shift += 8) {
      sum += (Ints)((a >> shift) & 0xffu) * ((Ints)(b << (24 - shift)) >> 24);
    }
    return sum;
#endif
  }
};

}  // namespace engine
KDGEN_END
