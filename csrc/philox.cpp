// Random numbers by address; see math.h for the arithmetic.
#include "philox.h"

#include <cmath>

#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr int kQuads = 64;  // Philox blocks made together: 4 words each

struct Words {
  std::uint32_t w[4][kQuads];
};

void draw_words(const Philox& p, std::int64_t index, std::int64_t first, Words* out) {
  const std::uint32_t low = static_cast<std::uint32_t>(static_cast<std::uint64_t>(index));
  const std::uint32_t high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(index) >> 32);
  const std::uint32_t key0 = static_cast<std::uint32_t>(p.seed);
  const std::uint32_t key1 = static_cast<std::uint32_t>(p.seed >> 32);
  const std::uint32_t base = static_cast<std::uint32_t>(first);
#pragma omp simd
  for (int q = 0; q < kQuads; ++q) {
    std::uint32_t c[4] = {base + static_cast<std::uint32_t>(q), low, high, p.stream};
    philox_rounds(c, key0, key1);
    out->w[0][q] = c[0];
    out->w[1][q] = c[1];
    out->w[2][q] = c[2];
    out->w[3][q] = c[3];
  }
}

void normals(const std::uint32_t* radius, const std::uint32_t* angle, float* even, float* odd) {
#pragma omp simd
  for (int q = 0; q < kQuads; ++q) {
    const double r = std::sqrt(squared_radius(radius[q]));
    double cosine, sine;
    direction(angle[q], &cosine, &sine);
    even[q] = static_cast<float>(r * cosine);
    odd[q] = static_cast<float>(r * sine);
  }
}

// Value j is number j % 4 of block j / 4.
template <class From, class To>
void interleave(const From (*from)[kQuads], To* to, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) to[j] = static_cast<To>(from[j & 3][j >> 2]);
}

void block(const Philox& p, std::int64_t row, std::int64_t first, std::int64_t n) {
  Words words;
  draw_words(p, p.index[row], first / 4, &words);
  const std::int64_t at = row * p.size + first;
  if (p.draw == Draw::words) return interleave(words.w, static_cast<std::int64_t*>(p.out) + at, n);
  float values[4][kQuads];
  if (p.draw == Draw::uniform) {
    for (int k = 0; k < 4; ++k) {
#pragma omp simd
      for (int q = 0; q < kQuads; ++q) values[k][q] = uniform(words.w[k][q]);
    }
  } else {
    normals(words.w[0], words.w[1], values[0], values[1]);
    normals(words.w[2], words.w[3], values[2], values[3]);
  }
  interleave(values, static_cast<float*>(p.out) + at, n);
}

}  // namespace

void philox(const Philox& p) {
  constexpr std::int64_t step = 4 * kQuads;
  const std::int64_t blocks = (p.size + step - 1) / step;
  const int threads = useful_threads(16 * p.n * p.size, p.threads);
  parallel_for(p.n * blocks, threads, [&](std::int64_t task) {
    const std::int64_t first = task % blocks * step;
    block(p, task / blocks, first, smaller(step, p.size - first));
  });
}
KDGEN_END
