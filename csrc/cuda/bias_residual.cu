// Sixteen bytes a thread. The gradient of the bias is summed in two stages, each in a fixed order.
#include "bias_residual.h"
#include "device.h"

namespace kdgen {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 512;             // a block of the backward pass sums this many pixels
constexpr int kWide = 32, kDeep = 32;  // channels and parts of a block of the second stage

KDGEN_DEVICE int channel_of(const Planes& s, std::int64_t at) {
  return static_cast<int>((s.channels_last ? at : at / s.size) % s.channels);
}

// Whether every pack is whole, and of one plane where channels are apart.
template <class T>
bool whole(const Planes& s, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<std::uintptr_t>(p) % sizeof(Pack)) return false;
  }
  return (s.channels_last ? s.channels : s.size) % kPack<T> == 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_residual_kernel(const BiasResidual p, const Planes s, const bool packs) {
  constexpr int V = kPack<T>;
  const std::int64_t total = s.n * s.channels * s.size;
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (at >= total) return;
  const T *x = static_cast<const T*>(p.x) + at, *residual = static_cast<const T*>(p.residual) + at;
  T* y = static_cast<T*>(p.y) + at;
  if (!packs) {
    for (int i = 0; i < V && at + i < total; ++i) {
      const float bias = p.bias ? p.bias[channel_of(s, at + i)] : 0.0f;
      store(y + i, ((load(x[i]) + bias) + load(residual[i])) * p.scale);
    }
    return;
  }
  float v[V], r[V];
  load_pack<T>(x, v);
  load_pack<T>(residual, r);
  const int channel = p.bias ? channel_of(s, at) : 0;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float bias = p.bias ? p.bias[channel + (s.channels_last ? i : 0)] : 0.0f;
    v[i] = ((v[i] + bias) + r[i]) * p.scale;
  }
  store_pack<T>(y, v);
}

// Channels last: a block takes kRows pixels and 32 packs of channels, a thread every 8th pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_residual_backward_kernel(const BiasResidualBackward p, const Planes s, const int across,
                                  const bool packs) {
  constexpr int V = kPack<T>, kLanes = kThreads / 32;
  float* room = reinterpret_cast<float*>(shared_memory());
  const int lane = static_cast<int>(threadIdx.x) / 32;
  const int column = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t part = blockIdx.x / across, pixels = s.n * s.size;
  const int channel = (static_cast<int>(blockIdx.x % across) * 32 + column) * V;
  float sum[V] = {};
  for (int r = lane; r < kRows && channel < s.channels; r += kLanes) {
    const std::int64_t pixel = part * kRows + r;
    if (pixel >= pixels) break;
    const std::int64_t at = pixel * s.channels + channel;
    const T* dy = static_cast<const T*>(p.dy) + at;
    T* dx = p.dx ? static_cast<T*>(p.dx) + at : nullptr;
    float v[V];
    if (packs) {
      load_pack<T>(dy, v);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = channel + i < s.channels ? load(dy[i]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += v[i], v[i] *= p.scale;
    if (dx && packs) {
      store_pack<T>(dx, v);
    } else if (dx) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (channel + i < s.channels) store(dx + i, v[i]);
      }
    }
  }
  if (!p.dbias) return;
#pragma unroll
  for (int i = 0; i < V; ++i) room[lane * 32 * V + column * V + i] = sum[i];
  __syncthreads();
  if (threadIdx.x >= 32) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float all = 0.0f;
    for (int l = 0; l < kLanes; ++l) all += room[l * 32 * V + column * V + i];
    if (channel + i < s.channels) p.partial[part * s.channels + channel + i] = all;
  }
}

// Channels apart: a block takes one plane.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_residual_planes_kernel(const BiasResidualBackward p, const Planes s) {
  float* room = reinterpret_cast<float*>(shared_memory());
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * s.size;
  const T* dy = static_cast<const T*>(p.dy) + at;
  T* dx = p.dx ? static_cast<T*>(p.dx) + at : nullptr;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < s.size; i += kThreads) {
    const float v = load(dy[i]);
    sum += v;
    if (dx) store(dx + i, v * p.scale);
  }
  if (!p.dbias) return;
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  float all = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) all += room[w];
  p.partial[blockIdx.x] = all;
}

__global__ void __launch_bounds__(kWide* kDeep)
    bias_residual_sums_kernel(const BiasResidualBackward p, const int channels,
                              const std::int64_t parts) {
  float* room = reinterpret_cast<float*>(shared_memory());
  const int lane = static_cast<int>(threadIdx.x) % kWide;
  const int deep = static_cast<int>(threadIdx.x) / kWide;
  const int channel = static_cast<int>(blockIdx.x) * kWide + lane;
  float sum = 0.0f;
  for (std::int64_t i = deep; channel < channels && i < parts; i += kDeep) {
    sum += p.partial[i * channels + channel];
  }
  room[threadIdx.x] = sum;
  __syncthreads();
  if (deep || channel >= channels) return;
  float all = 0.0f;
  for (int i = 0; i < kDeep; ++i) all += room[i * kWide + lane];
  p.dbias[channel] = all * p.scale;
}

}  // namespace

std::int64_t bias_parts(const Planes& s) {
  return s.channels_last ? (s.n * s.size + kRows - 1) / kRows : s.n;
}

void bias_residual(const BiasResidual& p, const Planes& s, Dtype dtype, const Queue& q) {
  by_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const std::int64_t each = kThreads * kPack<T>, total = s.n * s.channels * s.size;
    launch("bias_residual", bias_residual_kernel<T>, (total + each - 1) / each, kThreads, 0, q, p,
           s, whole<T>(s, {p.x, p.residual, p.y}));
  });
}

void bias_residual_backward(const BiasResidualBackward& p, const Planes& s, Dtype dtype,
                            const Queue& q) {
  constexpr const char* op = "bias_residual_backward";
  by_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    if (!s.channels_last) {
      launch(op, bias_residual_planes_kernel<T>, s.n * s.channels, kThreads, kThreads / 8, q, p, s);
      return;
    }
    const int across = (s.channels + 32 * kPack<T> - 1) / (32 * kPack<T>);
    launch(op, bias_residual_backward_kernel<T>, bias_parts(s) * across, kThreads,
           4 * kThreads * kPack<T>, q, p, s, across, whole<T>(s, {p.dy, p.dx}));
  });
  if (!p.dbias) return;
  launch(op, bias_residual_sums_kernel, (s.channels + kWide - 1) / kWide, kWide * kDeep,
         4 * kWide * kDeep, q, p, s.channels, bias_parts(s));
}

}  // namespace cuda
}  // namespace kdgen
