// What a network is given: the noisy image scaled, cast, channels innermost, padded with zeros.
#include "scale_input.h"

#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr std::int64_t kBlock = 4096;  // values a task takes, about

float factor(const ScaleInput& p, std::int64_t image) {
  if (!p.c_each) return p.c;
  return p.c_each[p.step ? smaller(larger(*p.step, 0), p.steps - 1) : image];
}

template <class X, class Y>
void pixels(const ScaleInput& p, std::int64_t image, std::int64_t from, std::int64_t to) {
  const X* x = static_cast<const X*>(p.x) + image * p.channels * p.size;
  Y* y = static_cast<Y*>(p.y) + image * p.out_channels * p.size;
  const std::int64_t pixel = p.channels_last ? p.channels : 1;
  const std::int64_t channel = p.channels_last ? 1 : p.size;
  const float c = factor(p, image);
  if (p.channels_last && p.out_channels == p.channels) {
#pragma omp simd
    for (std::int64_t i = from * pixel; i < to * pixel; ++i) store(y + i, c * load(x[i]));
    return;
  }
  for (std::int64_t k = 0; k < p.out_channels; ++k) {
    if (k >= p.channels) {
      for (std::int64_t s = from; s < to; ++s) store(y + s * p.out_channels + k, 0.0f);
      continue;
    }
    for (std::int64_t s = from; s < to; ++s) {
      store(y + s * p.out_channels + k, c * load(x[s * pixel + k * channel]));
    }
  }
}

template <class X, class Y>
void run(const ScaleInput& p) {
  const std::int64_t each = larger(1, kBlock / p.out_channels);
  const std::int64_t blocks = (p.size + each - 1) / each;
  const int threads = useful_threads(p.n * p.size * p.out_channels, p.threads);
  parallel_for(p.n * blocks, threads, [&](std::int64_t t) {
    const std::int64_t from = t % blocks * each;
    pixels<X, Y>(p, t / blocks, from, smaller(p.size, from + each));
  });
}

template <class X>
void into(const ScaleInput& p) {
  switch (p.out_dtype) {
    case Dtype::float32:
      return run<X, float>(p);
    case Dtype::float16:
      return run<X, Half>(p);
    case Dtype::bfloat16:
      return run<X, BFloat16>(p);
  }
}

}  // namespace

void scale_input(const ScaleInput& p) {
  switch (p.dtype) {
    case Dtype::float32:
      return into<float>(p);
    case Dtype::float16:
      return into<Half>(p);
    case Dtype::bfloat16:
      return into<BFloat16>(p);
  }
}
KDGEN_END
