// One step of a chain, its coefficients looked up by number; the last one writes bytes.
#include "chain_step.h"

#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr std::int64_t kBlock = 4096;

struct Row {
  float p, q, a, b, limit;
};

Row row_of(const ChainStep& c) {
  const float* r = c.table + 4 * smaller(larger(*c.step, 0), c.steps - 1);
  return {r[0], r[1], r[2], r[3], c.clip > 0 ? c.clip : __builtin_inff()};
}

KDGEN_INLINE float moved(const Row& r, float x_t, float raw) {
  const float stay = r.p * x_t, keep = r.a * x_t;
  return keep + r.b * clamp(stay + r.q * raw, -r.limit, r.limit);
}

// `n` values; `raw_at(i)` is where value i is in raw, `put(i, v)` takes the answer.
template <class X, class R, class At, class Put>
static inline __attribute__((always_inline)) void block(const X* x_t, const R* raw, std::int64_t n,
                                                        const Row& r, const At& raw_at,
                                                        const Put& put) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) put(i, moved(r, load(x_t[i]), load(raw[raw_at(i)])));
}

template <class X, class R, class Put>
static inline __attribute__((always_inline)) void line(const ChainStep& c, const Row& r,
                                                       std::int64_t at, std::int64_t n,
                                                       const Put& put) {
  const X* x_t = static_cast<const X*>(c.x_t) + at;
  const R* raw = static_cast<const R*>(c.raw);
  if (c.raw_channels == c.channels) {
    block(x_t, raw + at, n, r, [](std::int64_t i) { return i; }, put);
  } else {  // between the channels of a wider tensor
    const auto place = [&](std::int64_t i) {
      return (at + i) / c.channels * c.raw_channels + (at + i) % c.channels;
    };
    for (std::int64_t i = 0; i < n; ++i) put(i, moved(r, load(x_t[i]), load(raw[place(i)])));
  }
}

template <class X, class R>
void run(const ChainStep& c) {
  const Row r = row_of(c);
  // Bytes have channels innermost, so channel by channel where the input has them apart.
  const std::int64_t image = c.channels * c.size;
  const std::int64_t rows = c.bytes && !c.channels_last ? c.channels : 1, length = image / rows;
  const std::int64_t blocks = (length + kBlock - 1) / kBlock;
  parallel_for(c.n * rows * blocks, useful_threads(c.n * image, c.threads), [&](std::int64_t t) {
    const std::int64_t k = t / (rows * blocks), channel = t / blocks % rows;
    const std::int64_t from = t % blocks * kBlock, n = smaller(kBlock, length - from);
    const std::int64_t at = k * image + channel * length + from;
    if (!c.bytes) {
      X* y = static_cast<X*>(c.y) + at;
      line<X, R>(c, r, at, n, [=](std::int64_t i, float v) { store(y + i, v); });
      return;
    }
    std::uint8_t grey[kBlock];
    line<X, R>(c, r, at, n, [&](std::int64_t i, float v) {
      grey[i] = static_cast<std::uint8_t>(grey_level(v));
    });
    std::uint8_t* y = static_cast<std::uint8_t*>(c.y) + k * image + from * rows + channel;
    for (std::int64_t i = 0; i < n; ++i) y[i * rows] = grey[i];
  });
}

template <class X>
void with_raw(const ChainStep& c) {
  switch (c.raw_dtype) {
    case Dtype::float32:
      return run<X, float>(c);
    case Dtype::float16:
      return run<X, Half>(c);
    case Dtype::bfloat16:
      return run<X, BFloat16>(c);
  }
}

}  // namespace

void chain_step(const ChainStep& c) {
  switch (c.dtype) {
    case Dtype::float32:
      return with_raw<float>(c);
    case Dtype::float16:
      return with_raw<Half>(c);
    case Dtype::bfloat16:
      return with_raw<BFloat16>(c);
  }
}
KDGEN_END
