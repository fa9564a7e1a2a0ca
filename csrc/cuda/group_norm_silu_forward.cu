// One block an image and slab. A slab that fits shared memory is read once and written once; else
// it is walked twice in chunks, the second time out of the second-level cache.
#include "group_norm_parts.h"

namespace kdgen {
namespace cuda {
namespace {

// Running mean, and sum of squares about it, of every group of a slab.
struct Moments {
  float *mean, *spread;
  float *rough, *rest, *square;  // of one chunk
};

// Takes a chunk's sums in: Chan, Golub and LeVeque 1983. `rest` is what rounding left over of the
// rough mean; without it a constant far from 0 has a spread, and 1/√eps lifts it.
KDGEN_DEVICE void join(const Moments& m, int groups, float seen, float more) {
  const int g = static_cast<int>(threadIdx.x);
  for (int i = g; i < groups; i += kNormThreads) {
    const float left = m.rest[i] / more, mean = m.rough[i] / more + left;
    const float spread = m.square[i] - m.rest[i] * left;
    if (seen == 0.0f) {
      m.mean[i] = mean, m.spread[i] = spread;
      continue;
    }
    const float gap = mean - m.mean[i], share = more / (seen + more);
    m.mean[i] += gap * share;
    m.spread[i] += spread + gap * gap * (seen * share);
  }
}

template <class T>
KDGEN_DEVICE void measure(const Pack* tile, int rows, int columns, const Seat& seat,
                          const Slab& slab, int width, const float (&add)[kPack<T>],
                          const Moments& m, float* room, float seen) {
  constexpr int V = kPack<T>;
  const float more = static_cast<float>(rows) * static_cast<float>(width);
  const int last = seat.taken ? rows : 0;
  float sum[V] = {}, square[V] = {}, mean[V], v[V];
  for (int r = seat.lane; r < last; r += seat.lanes) {
    load_pack<T>(tile + r * columns + seat.column, v);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += v[i] + add[i];
  }
  group_sums(sum, room, m.rough, seat, slab, width);
  if (seat.taken) of_group(m.rough, seat.column * V, width, mean);
#pragma unroll
  for (int i = 0; i < V; ++i) mean[i] = mean[i] / more, sum[i] = 0.0f;
  for (int r = seat.lane; r < last; r += seat.lanes) {
    load_pack<T>(tile + r * columns + seat.column, v);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float d = v[i] + add[i] - mean[i];
      sum[i] += d;
      square[i] = fused(d, d, square[i]);
    }
  }
  group_sums(sum, room, m.rest, seat, slab, width);
  group_sums(square, room, m.square, seat, slab, width);
  join(m, slab.groups, seen, more);
  __syncthreads();
}

template <class T>
KDGEN_DEVICE void write(const Pack* tile, int rows, int columns, const Seat& seat, T* y,
                        std::int64_t stride, const Affine<kPack<T>>& a,
                        const float (&mean)[kPack<T>], bool act) {
  constexpr int V = kPack<T>;
  for (int r = seat.lane; r < rows; r += seat.lanes) {
    float v[V];
    load_pack<T>(tile + r * columns + seat.column, v);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      v[i] = fused(v[i] + a.add[i] - mean[i], a.gain[i], a.offset[i]);
    }
    if (act) {
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = silu(v[i]);
    }
    store_pack<T>(y + r * stride, v);
  }
}

template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    group_norm_silu_forward_kernel(const NormForward p, const Slabs s) {
  constexpr int V = kPack<T>;
  const std::int64_t image = blockIdx.x / s.count;
  const Slab slab = s.slab(static_cast<int>(blockIdx.x % s.count));
  const Seat seat = s.seat(slab, V, static_cast<int>(threadIdx.x));
  const int columns = slab.width / V, width = s.width(), channel = slab.channel + seat.column * V;
  const Half2 half = s.half(image, channel);
  const void* source = half.second ? p.more : p.x;

  Pack* tile = reinterpret_cast<Pack*>(shared_memory());
  float* room = reinterpret_cast<float*>(tile + s.rows * columns);
  float* each = room + kNormThreads * V;
  const Moments m = {each, each + slab.groups, each + 2 * slab.groups, each + 3 * slab.groups,
                     each + 4 * slab.groups};
  float add[V];
  read_add(p, image, s.channels, channel, add);

  float seen = 0.0f;
  for (int from = 0; from < s.size; from += s.rows) {
    const int rows = s.size - from < s.rows ? s.size - from : s.rows;
    fetch<T>(tile, source, half, seat, columns, from, rows);
    copies_end();
    copies_wait<0>();
    measure<T>(tile, rows, columns, seat, slab, width, add, m, room, seen);
    seen += static_cast<float>(rows) * static_cast<float>(width);
  }

  // m.rough now becomes the reciprocal deviation.
  for (int g = static_cast<int>(threadIdx.x); g < slab.groups; g += kNormThreads) {
    const float rstd = 1.0f / sqrtf(m.spread[g] / seen + p.eps);
    const std::int64_t at = image * s.groups + slab.group + g;
    p.mean[at] = m.mean[g];
    p.rstd[at] = m.rough[g] = rstd;
  }
  __syncthreads();
  if (!seat.taken) return;

  Affine<V> a;
  float mean[V], rstd[V];
  read_affine(p, image, s.channels, channel, &a);
  of_group(m.mean, seat.column * V, width, mean);
  of_group(m.rough, seat.column * V, width, rstd);
#pragma unroll
  for (int i = 0; i < V; ++i) a.gain[i] *= rstd[i];
  T* y = static_cast<T*>(p.y) + image * s.size * s.channels + channel;
  if (s.resident()) return write<T>(tile, s.size, columns, seat, y, s.channels, a, mean, p.act);
  for (int from = 0; from < s.size; from += s.rows) {
    const int rows = s.size - from < s.rows ? s.size - from : s.rows;
    fetch<T>(tile, source, half, seat, columns, from, rows);
    copies_end();
    copies_wait<0>();
    write<T>(tile, rows, columns, seat, y + static_cast<std::int64_t>(from) * s.channels,
             s.channels, a, mean, p.act);
  }
}

}  // namespace

void group_norm_silu_forward(const NormForward& p, const Slabs& s, Dtype dtype, const Queue& q) {
  by_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const int wide = s.per_slab * s.width();
    const std::int64_t shared = std::int64_t{1} * s.rows * wide * static_cast<int>(sizeof(T)) +
                                norm_scratch_bytes(kPack<T>, wide);
    launch("group_norm_silu", group_norm_silu_forward_kernel<T>, p.n * s.count, kNormThreads,
           static_cast<std::size_t>(shared), q, p, s);
  });
}

}  // namespace cuda
}  // namespace kdgen
