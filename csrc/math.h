// The arithmetic of every op, scalar and inline, for the CPU loops and for CUDA kernels alike.
//
// Everything is `static`: the CPU sources are compiled once per instruction set, and an external
// inline function built for AVX-512 could otherwise be linked into the baseline.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define KDGEN_INLINE static __host__ __device__ __forceinline__
#else
#define KDGEN_INLINE static inline __attribute__((always_inline))
#endif

namespace kdgen {

// Where contraction is switched off, as in all ops, a fused multiply-add happens here and nowhere
// else.
KDGEN_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

KDGEN_INLINE std::uint32_t bits_of(float v) {
  std::uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}

KDGEN_INLINE float float_of(std::uint32_t u) {
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

KDGEN_INLINE std::uint64_t bits_of(double v) {
  std::uint64_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}

KDGEN_INLINE double double_of(std::uint64_t u) {
  double v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

// ---- storage types ------------------------------------------------------------------------------

struct Half {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

KDGEN_INLINE float load(float v) { return v; }

KDGEN_INLINE float load(BFloat16 v) { return float_of(static_cast<std::uint32_t>(v.bits) << 16); }

KDGEN_INLINE float load(Half v) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  const std::uint32_t magnitude = static_cast<std::uint32_t>(v.bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000u) << 16;
  // As a float the exponent is 112 too small; a product with 2^112 also normalises subnormals.
  const std::uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7f800000u;  // infinity and NaN
  return float_of(sign | ((v.bits & 0x7c00u) == 0x7c00u ? special : finite));
#endif
}

KDGEN_INLINE void store(float* to, float v) { *to = v; }

KDGEN_INLINE void store(BFloat16* to, float v) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(v));
#else
  const std::uint32_t u = bits_of(v);
  const std::uint32_t nearest_even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t nan = 0x7fc0u;
  to->bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : nearest_even);
#endif
}

KDGEN_INLINE void store(Half* to, float v) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(v));
#else
  const std::uint32_t u = bits_of(v) & 0x7fffffffu;
  const std::uint32_t sign = (bits_of(v) >> 16) & 0x8000u;
  const std::uint32_t rebased = u - (112u << 23);
  const std::uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  // Near 1/2 a float's last place is 2^-24, the spacing of subnormal halves: the sum rounds for us.
  const std::uint32_t subnormal = bits_of(float_of(u) + 0.5f) - bits_of(0.5f);
  std::uint32_t h = u < (113u << 23) ? subnormal : normal;
  h = u >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above round to infinity
  h = u > 0x7f800000u ? 0x7e00u : h;
  to->bits = static_cast<std::uint16_t>(sign | h);
#endif
}

// ---- elementary functions -----------------------------------------------------------------------

// e^-x within 2 units in the last place for -88 <= x <= 87; flat above, infinity below, NaN kept.
// Plain arithmetic (no floor, no float-to-int), so that it vectorises on every target. A GPU has an
// instruction for 2^x (2 ulp); what the product with log2(e) loses is put back to first order.
KDGEN_INLINE float exponential_of_minus(float x) {
#if defined(__CUDA_ARCH__)
  x = 87.0f < x ? 87.0f : x;
  const float t = x * -1.44269504f;
  const float lost = fmaf(x, -1.92596299e-8f, fmaf(x, -1.44269504f, -t));
  float e;
  asm("ex2.approx.f32 %0, %1;" : "=f"(e) : "f"(t));
  return e < 0x1p127f ? fmaf(e, lost * 0.693147181f, e) : e;  // infinity stays infinity
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in low bits
  x = 87.0f < x ? 87.0f : x;
  float shifted = fused(x, -1.44269504f, magic);
  shifted = magic + 128.0f < shifted ? magic + 128.0f : shifted;
  const float n = shifted - magic;
  float r = fused(n, -0.693359375f, -x);  // ln 2 in two parts; n times the first part is exact
  r = fused(n, 2.12194440e-4f, r);
  float p = 1.392617612e-3f;  // Chebyshev fit of (e^r - 1 - r) / r^2 on |r| <= ln(2)/2
  p = fused(p, r, 8.363173075e-3f);
  p = fused(p, r, 4.166655466e-2f);
  p = fused(p, r, 1.666657703e-1f);
  p = fused(p, r, 5.0e-1f);
  p = fused(fused(p, r, 1.0f), r, 1.0f);
  return p * float_of((bits_of(shifted) - bits_of(magic) + 127u) << 23);
#endif
}

// 2^x; 2 ulp on a GPU. Only its kernels use it.
KDGEN_INLINE float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x));
  return e;
#else
  return __builtin_exp2f(x);
#endif
}

// a / b; 2 ulp on a GPU, where an exact division would cost more than the rest of a group norm.
KDGEN_INLINE float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

KDGEN_INLINE float sigmoid(float z) { return quotient(1.0f, 1.0f + exponential_of_minus(z)); }

KDGEN_INLINE float silu(float z) { return quotient(z, 1.0f + exponential_of_minus(z)); }

KDGEN_INLINE float silu_slope(float z) {
  const float s = sigmoid(z);
  return s * fused(z, 1.0f - s, 1.0f);
}

// ---- images -------------------------------------------------------------------------------------

// Comparisons are ordered so that NaN survives.
KDGEN_INLINE float clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// [-1, 1] to 0 … 255, half to even; the first comparison is ordered so that NaN becomes -1, i.e. 0.
KDGEN_INLINE std::uint32_t grey_level(float v) {
  v = v >= -1.0f ? v : -1.0f;
  v = v <= 1.0f ? v : 1.0f;
  return bits_of((v + 1.0f) * 127.5f + 12582912.0f) & 0xffu;
}

// ---- Philox4x32-10 ------------------------------------------------------------------------------

// Salmon, Moraes, Dror and Shaw 2011, doi:10.1145/2063384.2063405.
KDGEN_INLINE void philox_rounds(std::uint32_t c[4], std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(c[0]) * 0xD2511F53u;
    const std::uint64_t p1 = static_cast<std::uint64_t>(c[2]) * 0xCD9E8D57u;
    const std::uint32_t next0 = static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key0;
    const std::uint32_t next2 = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key1;
    c[1] = static_cast<std::uint32_t>(p1);
    c[3] = static_cast<std::uint32_t>(p0);
    c[0] = next0;
    c[2] = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

KDGEN_INLINE float uniform(std::uint32_t word) {
  float k = static_cast<float>(static_cast<std::int32_t>(word >> 8)) + 0.5f;
  k = k > 16777215.0f ? 16777215.0f : k;  // the last one would round up to 1
  return k * 0x1p-24f;
}

// An unsigned 32-bit integer as a double; vectorises where no conversion instruction exists.
KDGEN_INLINE double exact(std::uint64_t small) {
  return double_of(0x4330000000000000u | small) - 0x1p52;
}

// ln(u) for 2^-33 <= u < 1, to about 1e-13 of its value: far below half a float32 place.
KDGEN_INLINE double logarithm(double u) {
  const std::uint64_t root_half = 0x3FE6A09E667F3BCDu, bias = std::uint64_t{1024} << 52;
  const std::uint64_t exponent = (bits_of(u) - root_half + bias) >> 52;  // of u / m, plus 1024
  const double m = double_of(bits_of(u) - ((exponent - 1024u) << 52));   // sqrt(1/2) <= m < sqrt(2)
  const double s = (m - 1.0) / (m + 1.0), q = s * s;
  double p = 1.0 / 15;  // artanh series: |s| < 0.172
  p = p * q + 1.0 / 13;
  p = p * q + 1.0 / 11;
  p = p * q + 1.0 / 9;
  p = p * q + 1.0 / 7;
  p = p * q + 1.0 / 5;
  p = p * q + 1.0 / 3;
  p = p * q + 1.0;
  return (exact(exponent) - 1024.0) * 0.693147180559945309 + 2.0 * s * p;
}

// sin(x·π/2) for 0 <= x <= 1, to about 1e-13 of its value (Taylor, to the 17th power).
KDGEN_INLINE double quarter_sine(double x) {
  const double t = x * 1.57079632679489662, q = t * t;
  double p = 1.0 / 355687428096000.0;
  p = p * q - 1.0 / 1307674368000.0;
  p = p * q + 1.0 / 6227020800.0;
  p = p * q - 1.0 / 39916800.0;
  p = p * q + 1.0 / 362880.0;
  p = p * q - 1.0 / 5040.0;
  p = p * q + 1.0 / 120.0;
  p = p * q - 1.0 / 6.0;
  return t + t * q * p;
}

// -2 ln(u), the squared radius of Box and Muller 1958; its root is left to the caller's `sqrt`.
KDGEN_INLINE double squared_radius(std::uint32_t word) {
  return -2.0 * logarithm((exact(word) + 0.5) * 0x1p-32);
}

// Cosine and sine of a word's angle: two top bits are the quadrant, the rest a part of it.
KDGEN_INLINE void direction(std::uint32_t word, double* cosine, double* sine) {
  const double part = (exact(word & 0x3fffffffu) + 0.5) * 0x1p-30;
  const double near = quarter_sine(part), far = quarter_sine(1.0 - part);
  const std::uint32_t quadrant = word >> 30;
  const double c = (quadrant & 1u) ? near : far, s = (quadrant & 1u) ? far : near;
  *cosine = ((quadrant + 1u) & 2u) ? -c : c;
  *sine = (quadrant & 2u) ? -s : s;
}

}  // namespace kdgen
