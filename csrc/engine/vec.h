// As many floats as a register of this instruction set holds, and how they are read and written.
//
// GCC's vector types are plain C++ arithmetic on every target, so one source serves them all;
// multiplications and additions contract to fused ones here (unlike in the ops: see
// cmake/CpuKernels.cmake). Intrinsics only for what C++ cannot say.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../math.h"
#include "../target.h"
#include "../width.h"
#include "step.h"

KDGEN_BEGIN
namespace engine {

using namespace ::kdgen::engine;

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * kWidth)));

KDGEN_INLINE Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

KDGEN_INLINE Vec load(const BFloat16* from) {
  Halves h;
  std::memcpy(&h, from, sizeof h);
  return (Vec)(__builtin_convertvector(h, Bits) << 16);
}

KDGEN_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

KDGEN_INLINE void store(BFloat16* to, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  const Bits u = (Bits)v;
  const Bits nearest_even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Halves h = __builtin_convertvector(v == v ? nearest_even : Bits{} + 0x7fc0u, Halves);
#endif
  std::memcpy(to, &h, 2 * kWidth);
}

// Less zero, because plus zero would be an addition: it turns -0 into 0.
KDGEN_INLINE Vec all(float value) { return value - Vec{}; }

// f of every lane, for scalar functions that vectorise.
template <class Function>
static inline __attribute__((always_inline)) Vec each(Vec v, const Function& f) {
  float t[kWidth];
  std::memcpy(t, &v, sizeof v);
#pragma omp simd
  for (int l = 0; l < kWidth; ++l) t[l] = f(t[l]);
  return load(t);
}

// a·b + c, rounded once where the set has an instruction for it, wherever it is inlined: a product
// and a sum beside each other may contract in one place and not in another.
KDGEN_INLINE Vec fused(Vec a, Vec b, Vec c) {
#pragma omp simd
  for (int l = 0; l < kWidth; ++l) c[l] = ::kdgen::fused(a[l], b[l], c[l]);
  return c;
}

// 1/v within 2 units in the last place for 1 <= v; a division takes four times as long.
KDGEN_INLINE Vec reciprocal(Vec v) {
#if defined(__AVX512F__)
  const Vec most = all(0x1p126f);  // beyond, the answer is no normal number, and 0 times infinity
  const Vec x = v > most ? most : v;
  const Vec r = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return r + r * (all(1) - x * r);
#else
  return all(1) / v;
#endif
}

KDGEN_INLINE Vec silu(Vec v) {
  return v * reciprocal(all(1) + each(v, [](float x) { return exponential_of_minus(x); }));
}

}  // namespace engine
KDGEN_END
