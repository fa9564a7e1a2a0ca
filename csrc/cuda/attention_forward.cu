// A block takes 64 queries of one head past all keys and never keeps a score (Dao et al. 2022,
// arXiv:2205.14135): running maximum and sum, four warps of sixteen rows. While scores are computed
// the values arrive, and while those are added up the next keys do.
#include "attention_parts.h"

namespace kdgen {
namespace cuda {
namespace {

// Keys taken together; with 256 channels more would not leave registers for the answer.
template <int D>
constexpr int kKeys = D > 128 ? 32 : 64;

// Scores to powers of two below their row's maximum, and what that does to earlier sums.
template <int N>
KDGEN_DEVICE void soften(float (&c)[N][4], float factor, int left, float (&top)[2], float (&sum)[2],
                         float (&fade)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float high = top[half];
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const bool inside = 8 * j + lane_column() + i % 2 < left;
        c[j][i] = inside ? c[j][i] * factor : float_of(0xff800000u);
        high = fmaxf(high, c[j][i]);
      }
    }
    high = row_top(high);
    // Scores of -infinity alone: any finite maximum keeps them from becoming not-a-number.
    const float base = high == float_of(0xff800000u) ? 0.0f : high;
    fade[half] = power_of_two(top[half] - base);
    top[half] = high;
    float own = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        c[j][i] = power_of_two(c[j][i] - base);
        own += c[j][i];
      }
    }
    sum[half] = fused(sum[half], fade[half], own);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(const AttentionForward p, const AttentionShape s) {
  constexpr int N = kKeys<D> / 8;
  const Place at = place_of(s);
  const Tile<D> q = {reinterpret_cast<Pack*>(shared_memory())};
  const Tile<D> k = {q.base + kRows * Tile<D>::kPacks};
  const Tile<D> v = {k.base + kKeys<D> * Tile<D>::kPacks};

  fetch<T>(q, p.q, s, at, at.row, kRows);
  fetch<T>(k, p.k, s, at, 0, kKeys<D>);
  copies_end();
  fetch<T>(v, p.v, s, at, 0, kKeys<D>);
  copies_end();

  float out[D / 8][4] = {}, sum[2] = {};
  float top[2] = {float_of(0xff800000u), float_of(0xff800000u)}, fade[2];
  for (int from = 0; from < s.size; from += kKeys<D>) {
    float c[N][4] = {};
    copies_wait<1>();
    __syncthreads();
    multiply_rows<T>(c, q, warp_row(), k);
    __syncthreads();
    const int next = from + kKeys<D>;
    if (next < s.size) fetch<T>(k, p.k, s, at, next, kKeys<D>);
    copies_end();

    soften(c, p.scale * kLog2e, s.size - from, top, sum, fade);
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] *= fade[i / 2];
    }
    copies_wait<1>();
    __syncthreads();
    multiply_held<T, D>(out, c, v);
    __syncthreads();
    if (next < s.size) fetch<T>(v, p.v, s, at, next, kKeys<D>);
    copies_end();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float all = row_sum(sum[half]), share = 1.0f / all;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      out[j][2 * half] *= share;
      out[j][2 * half + 1] *= share;
    }
    const int row = at.row + warp_row() + lane_row() + 8 * half;
    if (lane_column() == 0 && row < s.size) {
      p.logsumexp[(at.image * s.heads + at.head) * s.size + row] = top[half] * kLn2 + logf(all);
    }
  }
  write<T>(out, q, p.out, s, at);
}

}  // namespace

void attention_forward(const AttentionForward& p, const AttentionShape& s, const Queue& queue) {
  by_width(s, [&](auto value, auto wide) {
    using T = decltype(value);
    constexpr int D = decltype(wide)::value;
    constexpr std::size_t shared = std::size_t{kRows + 2 * kKeys<D>} * D * 2;
    static_assert(shared <= kMostShared);
    launch("attention", attention_forward_kernel<T, D>, blocks_of(s), kThreads, shared, queue, p,
           s);
  });
}

}  // namespace cuda
}  // namespace kdgen
