// The inner loop of everything: a few rows against a panel, with all sums in registers.
#pragma once

#include "panels.h"

KDGEN_BEGIN
namespace engine {

constexpr std::int64_t kLine = 64;  // bytes of a cache line

template <class T, int R, int V>
struct Sums {
  typename Factor<T>::Sum at[R][V];
};

// sum[r] += rows[r][0 … k) · panel, in the order of k, whatever R and V. On the way it fetches one
// cache line a step from `ahead` on.
template <class T, int R, int V>
static inline __attribute__((always_inline)) void multiply(const T* const* rows, std::int64_t k,
                                                           const T* panel, const char* ahead,
                                                           Sums<T, R, V>& sums) {
  using F = Factor<T>;
  constexpr int unit = F::kUnit;
  const T* row[R];
  typename F::Sum sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = sums.at[r][v];
  }
  for (std::int64_t i = 0; i < k; i += unit) {
    typename F::Other b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) b[v] = F::other(panel + v * kWidth * unit);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto a = F::broadcast(row[r] + i);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = F::add(sum[r][v], a, b[v]);
    }
    panel += V * kWidth * unit;
    __builtin_prefetch(ahead, 0, 2);
    ahead += kLine;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums.at[r][v] = sum[r][v];
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// f(Count<rows>, Count<vectors of the panel>), as constants of the compiler.
template <class F, int V>
static inline void with_rows(std::int64_t rows, Count<V> vecs, const F& f) {
  switch (rows) {
    case 1:
      return f(Count<1>{}, vecs);
    case 2:
      return f(Count<2>{}, vecs);
#if defined(__AVX__)
    case 3:
      return f(Count<3>{}, vecs);
    case 4:
      return f(Count<4>{}, vecs);
    case 5:
      return f(Count<5>{}, vecs);
    case 6:
      return f(Count<6>{}, vecs);
#endif
  }
}

template <class F>
static inline void with_tile(std::int64_t rows, std::int64_t width, const F& f) {
  switch (width / kWidth) {
#if !defined(__AVX__) || defined(__AVX512F__)
    case 4:
      return with_rows(rows, Count<4>{}, f);
#endif
#if defined(__AVX__)
    case 2:
      return with_rows(rows, Count<2>{}, f);
#endif
#if defined(__AVX512F__)
    case 1:
      return with_rows(rows, Count<1>{}, f);
#endif
  }
}

}  // namespace engine
KDGEN_END
