// The gradients of q, k and v, each by blocks that own 64 of its rows and pass by all others, so
// that nothing is added up in an order that may change: scores are computed again in each (Dao et
// al. 2022, arXiv:2205.14135, algorithm 4). For dk and dv they are those of kᵀ's rows, transposed.
#include "attention_parts.h"

namespace kdgen {
namespace cuda {
namespace {

constexpr int kColumns = 32, kPairs = kColumns / 8;

enum class Wanted { dq, dk, dv };

// delta = Σ dout·out of one token and head, a warp each.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_delta_kernel(const AttentionBackward p, const AttentionShape s) {
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const std::int64_t both = row / s.size, token = row % s.size;
  if (both >= s.n * s.heads) return;
  const Place at = {both / s.heads, static_cast<int>(both % s.heads), 0};
  const T* dout = head_of<T>(p.dout, s, at) + token * p.dout.token;
  const T* out = head_of<T>(p.out, s, at) + token * p.out.token;
  float sum = 0.0f;
  if (lane() * 8 < s.width) {
    float a[8], b[8];
    load_pack<T>(dout + lane() * 8, a);
    load_pack<T>(out + lane() * 8, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fused(a[i], b[i], sum);
  }
  sum = warp_sum(sum);
  if (lane() == 0) p.delta[row] = sum;
}

// Of a query: logsumexp in powers of two, and delta. Beyond the last one its powers vanish.
struct Query {
  float high, delta;
};

KDGEN_DEVICE Query query_of(const AttentionBackward& p, const AttentionShape& s, const Place& at,
                            int row) {
  if (row >= s.size) return {float_of(0x7f800000u), 0.0f};
  const std::int64_t i = (at.image * s.heads + at.head) * s.size + row;
  return {p.logsumexp[i] * kLog2e, p.delta[i]};
}

// p, and then for dq and dk the gradient of the scores, in place of the scores.
template <Wanted W>
KDGEN_DEVICE void slopes(float (&c)[kPairs][4], const float (&dp)[kPairs][4],
                         const AttentionBackward& p, int left, const Query (&mine)[2],
                         const Query* passing) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 8 * j + lane_column() + i % 2;
      const Query q = W == Wanted::dq ? mine[i / 2] : passing[column];
      const float power = power_of_two(c[j][i] * (p.scale * kLog2e) - q.high);
      const float inside = column < left ? power : 0.0f;
      c[j][i] = W == Wanted::dv ? inside : inside * (dp[j][i] - q.delta) * p.scale;
    }
  }
}

template <class T, int D, Wanted W>
__global__ void __launch_bounds__(kThreads)
    attention_backward_kernel(const AttentionBackward p, const AttentionShape s) {
  constexpr bool by_query = W == Wanted::dq, scores_only = W == Wanted::dv;
  const Place at = place_of(s);
  const Tokens &own = by_query ? p.q : p.k, &own_out = by_query ? p.dout : p.v;
  const Tokens &other = by_query ? p.k : p.q, &other_out = by_query ? p.v : p.dout;
  const Tokens& to = W == Wanted::dq ? p.dq : W == Wanted::dk ? p.dk : p.dv;

  const Tile<D> left = {reinterpret_cast<Pack*>(shared_memory())};
  const Tile<D> right = {left.base + kRows * Tile<D>::kPacks};
  const Tile<D> right_out = {right.base + kColumns * Tile<D>::kPacks};
  const Tile<D> left_out = {right_out.base + kColumns * Tile<D>::kPacks};
  Query* passing =
      reinterpret_cast<Query*>(left_out.base + (scores_only ? 0 : kRows * Tile<D>::kPacks));

  fetch<T>(left, own, s, at, at.row, kRows);
  if (!scores_only) fetch<T>(left_out, own_out, s, at, at.row, kRows);
  const int row = at.row + warp_row() + lane_row();
  const Query mine[2] = {query_of(p, s, at, row), query_of(p, s, at, row + 8)};

  float out[D / 8][4] = {};
  for (int from = 0; from < s.size; from += kColumns) {
    __syncthreads();
    fetch<T>(right, other, s, at, from, kColumns);
    fetch<T>(right_out, other_out, s, at, from, kColumns);
    copies_end();
    if (!by_query && threadIdx.x < kColumns) {
      passing[threadIdx.x] = query_of(p, s, at, from + static_cast<int>(threadIdx.x));
    }
    copies_wait<0>();
    __syncthreads();
    float c[kPairs][4] = {}, dp[kPairs][4] = {};
    multiply_rows<T>(c, left, warp_row(), right);
    if (!scores_only) multiply_rows<T>(dp, left_out, warp_row(), right_out);
    slopes<W>(c, dp, p, s.size - from, mine, passing);
    multiply_held<T, D>(out, c, scores_only ? right_out : right);
  }
  write<T>(out, left, to, s, at);
}

template <class T, int D, Wanted W>
void run(const AttentionBackward& p, const AttentionShape& s, const Queue& queue) {
  constexpr int rows = (W == Wanted::dv ? 1 : 2) * kRows + 2 * kColumns;
  constexpr std::size_t shared = std::size_t{rows} * D * 2 + kColumns * sizeof(Query);
  static_assert(shared <= kMostShared);
  launch("attention_backward", attention_backward_kernel<T, D, W>, blocks_of(s), kThreads, shared,
         queue, p, s);
}

}  // namespace

void attention_backward(const AttentionBackward& p, const AttentionShape& s, const Queue& queue) {
  by_width(s, [&](auto value, auto wide) {
    using T = decltype(value);
    constexpr int D = decltype(wide)::value, each = kThreads / 32;
    launch("attention_backward", attention_delta_kernel<T>,
           (s.n * s.heads * s.size + each - 1) / each, kThreads, 0, queue, p, s);
    run<T, D, Wanted::dq>(p, s, queue);
    run<T, D, Wanted::dk>(p, s, queue);
    run<T, D, Wanted::dv>(p, s, queue);
  });
}

}  // namespace cuda
}  // namespace kdgen
