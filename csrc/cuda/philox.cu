// A thread makes one block of four numbers; math.h has the arithmetic, the same as on the CPU.
#include "device.h"
#include "philox.h"

namespace kdgen {
namespace cuda {
namespace {

constexpr int kThreads = 256;

KDGEN_DEVICE void normals(std::uint32_t radius, std::uint32_t angle, float* even, float* odd) {
  const double r = sqrt(squared_radius(radius));
  double cosine, sine;
  direction(angle, &cosine, &sine);
  *even = static_cast<float>(r * cosine);
  *odd = static_cast<float>(r * sine);
}

__global__ void __launch_bounds__(kThreads)
    philox_kernel(const Philox p, const std::int64_t quads) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = at / quads, quad = at - row * quads;
  if (row >= p.n) return;
  const std::uint64_t index = static_cast<std::uint64_t>(p.index[row]);
  std::uint32_t w[4] = {static_cast<std::uint32_t>(quad), static_cast<std::uint32_t>(index),
                        static_cast<std::uint32_t>(index >> 32), p.stream};
  philox_rounds(w, static_cast<std::uint32_t>(p.seed), static_cast<std::uint32_t>(p.seed >> 32));
  const std::int64_t first = quad * 4, to = row * p.size + first;
  const int count = p.size - first < 4 ? static_cast<int>(p.size - first) : 4;
  if (p.draw == Draw::words) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) static_cast<std::int64_t*>(p.out)[to + i] = w[i];
    }
    return;
  }
  float v[4];
  if (p.draw == Draw::uniform) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = uniform(w[i]);
  } else {
    normals(w[0], w[1], v, v + 1);
    normals(w[2], w[3], v + 2, v + 3);
  }
  float* out = static_cast<float*>(p.out) + to;
  if (count == 4 && reinterpret_cast<std::uintptr_t>(out) % sizeof(Pack) == 0) {
    store_pack<float>(out, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = v[i];
  }
}

}  // namespace

void philox(const Philox& p, const Queue& q) {
  const std::int64_t quads = (p.size + 3) / 4;
  launch("philox", philox_kernel, (p.n * quads + kThreads - 1) / kThreads, kThreads, 0, q, p,
         quads);
}

}  // namespace cuda
}  // namespace kdgen
