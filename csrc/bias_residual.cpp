// The end of a residual branch: bias of its last convolution, sum with the shortcut, scale.
#include "bias_residual.h"

#include "lanes.h"
#include "math.h"
#include "parallel.h"

KDGEN_BEGIN
namespace {

constexpr std::int64_t kBlock = 16384;  // values a task takes, about
constexpr std::int64_t kRun = 64;       // values a lane sums in float32 before float64 takes over

std::int64_t rows_of_a_task(std::int64_t width) { return larger(1, kBlock / larger(1, width)); }

// One bias for all, or one each.
template <class T>
void join(const T* x, const T* residual, T* y, std::int64_t n, float bias, float scale) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    store(y + i, ((load(x[i]) + bias) + load(residual[i])) * scale);
  }
}

template <class T>
void join_each(const T* x, const T* residual, T* y, std::int64_t n, const float* bias,
               float scale) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    store(y + i, ((load(x[i]) + bias[i]) + load(residual[i])) * scale);
  }
}

template <class T>
void run(const BiasResidual& p) {
  const T *x = static_cast<const T*>(p.x), *residual = static_cast<const T*>(p.residual);
  T* y = static_cast<T*>(p.y);
  const std::int64_t total = p.n * p.channels * p.size;
  const int threads = useful_threads(total, p.threads);
  if (!p.bias) {
    parallel_for((total + kBlock - 1) / kBlock, threads, [&](std::int64_t task) {
      const std::int64_t at = task * kBlock;
      join(x + at, residual + at, y + at, smaller(kBlock, total - at), 0.0f, p.scale);
    });
    return;
  }
  // Rows of pixels with a bias for each value, or of a channel with one for all.
  const std::int64_t width = p.channels_last ? p.channels : p.size;
  const std::int64_t rows = total / width, each = rows_of_a_task(width);
  parallel_for((rows + each - 1) / each, threads, [&](std::int64_t task) {
    for (std::int64_t r = task * each; r < smaller(rows, (task + 1) * each); ++r) {
      const std::int64_t at = r * width;
      if (p.channels_last) {
        join_each(x + at, residual + at, y + at, width, p.bias, p.scale);
      } else {
        join(x + at, residual + at, y + at, width, p.bias[r % p.channels], p.scale);
      }
    }
  });
}

template <class T>
void scaled(const T* dy, T* dx, std::int64_t n, float scale) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(dx + i, load(dy[i]) * scale);
}

// Sums over the pixels of one image with channels innermost.
template <class T>
void sum_pixels(const T* dy, std::int64_t size, std::int64_t channels, float* sums) {
  constexpr std::int64_t kWide = 64;  // channels taken together
  for (std::int64_t c0 = 0; c0 < channels; c0 += kWide) {
    const std::int64_t width = smaller(kWide, channels - c0);
    double total[kWide] = {};
    for (std::int64_t from = 0; from < size; from += kRun) {
      float part[kWide] = {};
      for (std::int64_t s = from; s < smaller(size, from + kRun); ++s) {
        const T* row = dy + s * channels + c0;
#pragma omp simd
        for (std::int64_t c = 0; c < width; ++c) part[c] += load(row[c]);
      }
      for (std::int64_t c = 0; c < width; ++c) total[c] += part[c];
    }
    for (std::int64_t c = 0; c < width; ++c) sums[c0 + c] = static_cast<float>(total[c]);
  }
}

template <class T>
float sum_plane(const T* dy, std::int64_t size) {
  double total = 0;
  for (std::int64_t from = 0; from < size; from += kLanes * kRun) {
    total += sum_of(smaller(kLanes * kRun, size - from),
                    [&](std::int64_t i) { return load(dy[from + i]); });
  }
  return static_cast<float>(total);
}

// One task an image, then one a channel: the order of a sum does not depend on the threads.
template <class T>
void run(const BiasResidualBackward& p) {
  const std::int64_t image = p.channels * p.size;
  const int threads = useful_threads(p.n * image, p.threads);
  parallel_for(p.n, threads, [&](std::int64_t k) {
    const T* dy = static_cast<const T*>(p.dy) + k * image;
    if (p.dx) scaled(dy, static_cast<T*>(p.dx) + k * image, image, p.scale);
    if (!p.dbias) return;
    float* sums = p.partial + k * p.channels;
    if (p.channels_last) {
      sum_pixels(dy, p.size, p.channels, sums);
    } else {
      for (std::int64_t c = 0; c < p.channels; ++c) sums[c] = sum_plane(dy + c * p.size, p.size);
    }
  });
  if (!p.dbias) return;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    double total = 0;
    for (std::int64_t k = 0; k < p.n; ++k) total += p.partial[k * p.channels + c];
    p.dbias[c] = static_cast<float>(total * static_cast<double>(p.scale));
  }
}

template <class Args>
void dispatch(const Args& p) {
  switch (p.dtype) {
    case Dtype::float32:
      return run<float>(p);
    case Dtype::float16:
      return run<Half>(p);
    case Dtype::bfloat16:
      return run<BFloat16>(p);
  }
}

}  // namespace

void bias_residual(const BiasResidual& p) { dispatch(p); }
void bias_residual_backward(const BiasResidualBackward& p) { dispatch(p); }
KDGEN_END
