// Sums in sixteen lanes, joined as a tree. A `simd reduction` adds its lanes up one after another,
// which costs more than the loop itself on the short rows of small images.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"

namespace kdgen {

constexpr int kLanes = 16;

typedef float Lanes __attribute__((vector_size(4 * kLanes)));

KDGEN_INLINE float join(const Lanes& lanes) {
  float t[kLanes];
  std::memcpy(t, &lanes, sizeof t);
  for (int l = 0; l < 8; ++l) t[l] += t[l + 8];
  for (int l = 0; l < 4; ++l) t[l] += t[l + 4];
  return (t[0] + t[2]) + (t[1] + t[3]);
}

// Σ get(i) for i below n.
template <class Get>
static inline __attribute__((always_inline)) float sum_of(std::int64_t n, const Get& get) {
  Lanes sum = {};
  std::int64_t at = 0;
  for (; at + kLanes <= n; at += kLanes) {
    float t[kLanes];
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) t[l] = get(at + l);
    Lanes more;
    std::memcpy(&more, t, sizeof more);
    sum += more;
  }
  float rest = 0;
  for (; at < n; ++at) rest += get(at);
  return join(sum) + rest;
}

}  // namespace kdgen
