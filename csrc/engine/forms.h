// The Winograd forms of a 3×3 convolution, one direction at a time: y = A[(G w) ⊙ (B x)].
//
// A form evaluates two polynomials at kPoints points, multiplies there, and interpolates; in two
// directions it needs kPoints² products where the plain sum needs 9·kOutputs². (Toom 1963; Winograd
// 1980; for convolutions Lavin & Gray 2016, arXiv:1509.09308.) With finite points p_i and infinity,
//   G's row i is (1, p_i, p_i²)/Π_{j≠i}(p_i − p_j), and (0, 0, 1) for infinity;
//   B's row i has the coefficients of Π_{j≠i}(x − p_j), and of Π_j (x − p_j) for infinity;
//   A's column i has the powers of p_i, and (0, …, 0, 1) for infinity.
#pragma once

#include "vec.h"

KDGEN_BEGIN
namespace engine {

// Two outputs by four products, points 0, 1, −1, ∞.
struct Two {
  static constexpr int kPoints = 4, kOutputs = 2, kInputs = 4, kStride = 2;

  static KDGEN_MEMBER void weights(const Vec* w, Vec* u) {
    const Vec half = all(0.5f), even = half * (w[0] + w[2]);
    u[0] = -w[0];
    u[1] = even + half * w[1];
    u[2] = even - half * w[1];
    u[3] = w[2];
  }
  static KDGEN_MEMBER void input(const Vec* x, Vec* r) {
    r[0] = x[2] - x[0];
    r[1] = x[2] + x[1];
    r[2] = x[2] - x[1];
    r[3] = x[3] - x[1];
  }
  static KDGEN_MEMBER void output(const Vec* m, Vec* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

// Four outputs by six products, points 0, ±a, ±b, ∞. With a = 3/4, b = 3/2 the transforms enlarge
// rounding errors several times less than with the usual 1 and 2.
struct Four {
  static constexpr int kPoints = 6, kOutputs = 4, kInputs = 6, kStride = 4;
  static constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;

  static KDGEN_MEMBER void weights(const Vec* w, Vec* u) {
    constexpr float at_a = 1 / (2 * aa * (aa - bb)), at_b = 1 / (2 * bb * (bb - aa));
    u[0] = all(1 / (aa * bb)) * w[0];
    const Vec even_a = all(at_a) * w[0] + all(aa * at_a) * w[2];
    u[1] = even_a + all(a * at_a) * w[1];
    u[2] = even_a - all(a * at_a) * w[1];
    const Vec even_b = all(at_b) * w[0] + all(bb * at_b) * w[2];
    u[3] = even_b + all(b * at_b) * w[1];
    u[4] = even_b - all(b * at_b) * w[1];
    u[5] = w[2];
  }
  static KDGEN_MEMBER void input(const Vec* x, Vec* r) {
    const Vec p = all(aa * bb), s = all(aa + bb);
    r[0] = p * x[0] + (x[4] - s * x[2]);
    const Vec even_a = x[4] - all(bb) * x[2], odd_a = x[3] - all(bb) * x[1];
    r[1] = even_a + all(a) * odd_a;
    r[2] = even_a - all(a) * odd_a;
    const Vec even_b = x[4] - all(aa) * x[2], odd_b = x[3] - all(aa) * x[1];
    r[3] = even_b + all(b) * odd_b;
    r[4] = even_b - all(b) * odd_b;
    r[5] = p * x[1] + (x[5] - s * x[3]);
  }
  static KDGEN_MEMBER void output(const Vec* m, Vec* y) {
    const Vec sum_a = m[1] + m[2], odd_a = m[1] - m[2], sum_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = all(a) * odd_a + all(b) * odd_b;
    y[2] = all(aa) * sum_a + all(bb) * sum_b;
    y[3] = all(aa * a) * odd_a + (all(bb * b) * odd_b + m[5]);
  }
};

// Two outputs of an image doubled by nearest neighbour, by three products: `Two` sees (u, v, v, w)
// there, where its product at −1 is nothing.
struct Doubled {
  static constexpr int kPoints = 3, kOutputs = 2, kInputs = 3, kStride = 1;

  static KDGEN_MEMBER void weights(const Vec* w, Vec* u) {
    u[0] = w[0];
    u[1] = w[0] + w[1] + w[2];
    u[2] = w[2];
  }
  static KDGEN_MEMBER void input(const Vec* x, Vec* r) {
    r[0] = x[0] - x[1];
    r[1] = x[1];
    r[2] = x[2] - x[1];
  }
  static KDGEN_MEMBER void output(const Vec* m, Vec* y) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

// A transform of I values to N, down the columns of a square and then along its rows: `take` gives
// the value at (i, j), `put` is given the answer at (i, j).
template <int N, int I, class Transform, class Take, class Put>
KDGEN_INLINE void both_ways(const Transform& transform, const Take& take, const Put& put) {
  Vec half[N][I];
#pragma GCC unroll 6
  for (int j = 0; j < I; ++j) {
    Vec x[I], r[N];
#pragma GCC unroll 6
    for (int i = 0; i < I; ++i) x[i] = take(i, j);
    transform(x, r);
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) half[i][j] = r[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    Vec r[N];
    transform(half[i], r);
#pragma GCC unroll 6
    for (int j = 0; j < N; ++j) put(i, j, r[j]);
  }
}

}  // namespace engine
KDGEN_END
