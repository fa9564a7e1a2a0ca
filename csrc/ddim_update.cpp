// One sampler step, element by element.
#include "ddim_update.h"

#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr std::int64_t kBlock = 16384;

template <class T>
void block(const T* x_t, const T* x0, T* y, std::int64_t n, float a, float b, float limit) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float stay = a * load(x_t[i]);
    store(y + i, stay + b * clamp(load(x0[i]), -limit, limit));
  }
}

template <class T>
void run(const DdimUpdate& p) {
  const float limit = p.clip > 0 ? p.clip : __builtin_inff();
  const std::int64_t blocks = (p.per_image + kBlock - 1) / kBlock;
  const int threads = useful_threads(p.n * p.per_image, p.threads);
  parallel_for(p.n * blocks, threads, [&](std::int64_t task) {
    const std::int64_t image = task / blocks, from = task % blocks * kBlock;
    const std::int64_t at = image * p.per_image + from;
    const float a = p.a_each ? p.a_each[image] : p.a, b = p.b_each ? p.b_each[image] : p.b;
    block(static_cast<const T*>(p.x_t) + at, static_cast<const T*>(p.x0) + at,
          static_cast<T*>(p.y) + at, smaller(kBlock, p.per_image - from), a, b, limit);
  });
}

}  // namespace

void ddim_update(const DdimUpdate& p) {
  switch (p.dtype) {
    case Dtype::float32:
      return run<float>(p);
    case Dtype::float16:
      return run<Half>(p);
    case Dtype::bfloat16:
      return run<BFloat16>(p);
  }
}
KDGEN_END
