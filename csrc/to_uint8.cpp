// Images to bytes, channels innermost; optionally the last sampler step on the way.
#include "to_uint8.h"

#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr std::int64_t kBlock = 4096;

// `n` values in order, to bytes `stride` apart.
template <class T>
void row(const T* x_t, const T* x0, std::uint8_t* y, std::int64_t n, std::int64_t stride, float a,
         float b, float limit) {
  std::uint8_t grey[kBlock];
  if (x0) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const float stay = a * load(x_t[i]);
      grey[i] = static_cast<std::uint8_t>(grey_level(stay + b * clamp(load(x0[i]), -limit, limit)));
    }
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      grey[i] = static_cast<std::uint8_t>(grey_level(load(x_t[i])));
    }
  }
  if (stride == 1) {
    std::memcpy(y, grey, static_cast<std::size_t>(n));
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i * stride] = grey[i];
  }
}

template <class T>
void run(const ToUint8& p) {
  const DdimUpdate& s = p.step;
  const float limit = s.clip > 0 ? s.clip : __builtin_inff();
  const std::int64_t rows = p.channels_last ? 1 : p.channels;
  const std::int64_t length = p.channels_last ? p.channels * p.size : p.size;
  const std::int64_t blocks = (length + kBlock - 1) / kBlock;
  const int threads = useful_threads(s.n * s.per_image, s.threads);
  parallel_for(s.n * rows * blocks, threads, [&](std::int64_t task) {
    const std::int64_t image = task / (rows * blocks), r = task / blocks % rows;
    const std::int64_t from = task % blocks * kBlock;
    const std::int64_t at = image * s.per_image + r * length + from;
    const float a = s.a_each ? s.a_each[image] : s.a, b = s.b_each ? s.b_each[image] : s.b;
    row(static_cast<const T*>(s.x_t) + at, s.x0 ? static_cast<const T*>(s.x0) + at : nullptr,
        static_cast<std::uint8_t*>(s.y) + image * s.per_image + from * rows + r,
        smaller(kBlock, length - from), rows, a, b, limit);
  });
}

}  // namespace

void to_uint8(const ToUint8& p) {
  switch (p.step.dtype) {
    case Dtype::float32:
      return run<float>(p);
    case Dtype::float16:
      return run<Half>(p);
    case Dtype::bfloat16:
      return run<BFloat16>(p);
  }
}
KDGEN_END
