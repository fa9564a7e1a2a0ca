// One block an image and slab, as in the forward pass, with x and dy side by side in shared memory.
// Each block leaves its sums over places in (n, channels); a second kernel adds the images up in a
// fixed order, so that a gradient has the same bits every time.
#include "group_norm_parts.h"

namespace kdgen {
namespace cuda {
namespace {

constexpr int kSumChannels = 32, kSumImages = 32;  // of one block of the second kernel

// What a thread needs to know of its channels.
template <int V>
struct Local {
  Affine<V> a;
  float mean[V], rstd[V];
};

// xhat, and dz: the gradient before the affine.
template <class T>
KDGEN_DEVICE void slopes(const Pack* x, const Pack* dy, const Local<kPack<T>>& l, bool act,
                         float (&xhat)[kPack<T>], float (&dz)[kPack<T>]) {
  load_pack<T>(x, xhat);
  load_pack<T>(dy, dz);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    xhat[i] = (xhat[i] + l.a.add[i] - l.mean[i]) * l.rstd[i];
    if (act) dz[i] *= silu_slope(fused(xhat[i], l.a.gain[i], l.a.offset[i]));
  }
}

// total[c] = Σ over rows of channel c of the slab.
template <int V>
KDGEN_DEVICE void channel_sums(const float (&mine)[V], float* room, float* total, const Seat& seat,
                               int width) {
  const int thread = static_cast<int>(threadIdx.x);
  lay_out(mine, room, seat, width);
  __syncthreads();
  // Several threads a channel, each adding every `parts`-th row up into its first one.
  const int parts = width < kNormThreads ? kNormThreads / width : 1;
  for (int i = thread; i < parts * width; i += kNormThreads) {
    const int c = i % width, part = i / width;
    float sum = 0.0f;
    for (int r = part; r < seat.lanes; r += parts) sum += room[r * width + c];
    if (part < seat.lanes) room[part * width + c] = sum;
  }
  __syncthreads();
  for (int c = thread; c < width; c += kNormThreads) {
    float sum = 0.0f;
    for (int part = 0; part < parts && part < seat.lanes; ++part) sum += room[part * width + c];
    total[c] = sum;
  }
  __syncthreads();
}

// Of a slab: sums by channel, then level = mean(dxhat) and tilt = mean(dxhat·xhat) by group.
struct Totals {
  float *s1, *s2, *s3, *level, *tilt;
};

KDGEN_DEVICE void join(const NormBackward& p, const Slabs& s, const Slab& slab, std::int64_t image,
                       const Totals& t) {
  const int width = s.width(), lane = static_cast<int>(threadIdx.x) % 32;
  const float count = static_cast<float>(s.size) * static_cast<float>(width);
  for (int g = static_cast<int>(threadIdx.x) / 32; g < slab.groups; g += kNormThreads / 32) {
    float level = 0.0f, tilt = 0.0f;
    for (int d = lane; d < width; d += 32) {
      const int c = slab.channel + g * width + d;
      const float gain = p.weight[c] * lift_of(p, image * s.channels + c);
      level = fused(gain, t.s1[g * width + d], level);
      tilt = fused(gain, t.s2[g * width + d], tilt);
    }
    level = warp_sum(level), tilt = warp_sum(tilt);
    if (lane == 0) t.level[g] = level / count, t.tilt[g] = tilt / count;
  }
  __syncthreads();
}

// The sums of this image, and what is made of them alone.
KDGEN_DEVICE void keep(const NormBackward& p, const Slabs& s, const Slab& slab, std::int64_t image,
                       const Totals& t) {
  for (int i = static_cast<int>(threadIdx.x); i < slab.width; i += kNormThreads) {
    const int c = slab.channel + i, g = i / s.width();
    const std::int64_t at = image * s.channels + c;
    p.s1[at] = t.s1[i], p.s2[at] = t.s2[i];
    if (p.dshift) p.dshift[at] = t.s1[i];
    if (p.dscale) p.dscale[at] = p.weight[c] * t.s2[i] + p.bias[c] * t.s1[i];
    if (!p.dadd) continue;
    const float own = p.weight[c] * lift_of(p, at) * t.s1[i];
    const float shared = t.level[g] * static_cast<float>(s.size) + t.tilt[g] * t.s3[i];
    const float sum = (own - shared) * p.rstd[image * s.groups + slab.group + g];
    (p.add_per_image ? p.dadd : p.s3)[at] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks - 1)
    group_norm_silu_backward_kernel(const NormBackward p, const Slabs s) {
  constexpr int V = kPack<T>;
  const std::int64_t image = blockIdx.x / s.count;
  const Slab slab = s.slab(static_cast<int>(blockIdx.x % s.count));
  const Seat seat = s.seat(slab, V, static_cast<int>(threadIdx.x));
  const int columns = slab.width / V, width = s.width(), channel = slab.channel + seat.column * V;
  const Half2 half = s.half(image, channel);
  const Half2 all = {false, image * s.size * s.channels + channel, s.channels};
  const void* source = half.second ? p.more : p.x;

  Pack* tile = reinterpret_cast<Pack*>(shared_memory());
  Pack* slope_tile = tile + s.rows * columns;
  float* room = reinterpret_cast<float*>(slope_tile + s.rows * columns);
  float* each = room + kNormThreads * V;
  const Totals t = {each, each + slab.width, each + 2 * slab.width, each + 3 * slab.width,
                    each + 4 * slab.width};
  Local<V> l;
  read_affine(p, image, s.channels, channel, &l.a);
  of_group(p.mean + image * s.groups + slab.group, seat.column * V, width, l.mean);
  of_group(p.rstd + image * s.groups + slab.group, seat.column * V, width, l.rstd);

  const auto load = [&](int from, int rows) {
    fetch<T>(tile, source, half, seat, columns, from, rows);
    fetch<T>(slope_tile, p.dy, all, seat, columns, from, rows);
    copies_end();
    copies_wait<0>();
  };
  float s1[V] = {}, s2[V] = {}, s3[V] = {}, xhat[V], dz[V];
  for (int from = 0; from < s.size; from += s.rows) {
    const int rows = s.size - from < s.rows ? s.size - from : s.rows;
    load(from, rows);
    for (int r = seat.lane; r < (seat.taken ? rows : 0); r += seat.lanes) {
      const int at = r * columns + seat.column;
      slopes<T>(tile + at, slope_tile + at, l, p.act, xhat, dz);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        s1[i] += dz[i];
        s2[i] = fused(dz[i], xhat[i], s2[i]);
        s3[i] += xhat[i];
      }
    }
  }
  channel_sums(s1, room, t.s1, seat, slab.width);
  channel_sums(s2, room, t.s2, seat, slab.width);
  if (p.dadd) channel_sums(s3, room, t.s3, seat, slab.width);
  join(p, s, slab, image, t);
  keep(p, s, slab, image, t);
  if (!seat.taken) return;

  float level[V], tilt[V];
  of_group(t.level, seat.column * V, width, level);
  of_group(t.tilt, seat.column * V, width, tilt);
  T* dx = static_cast<T*>(half.second ? p.dmore : p.dx) + half.offset;
  for (int from = 0; from < s.size; from += s.rows) {
    const int rows = s.size - from < s.rows ? s.size - from : s.rows;
    if (!s.resident()) load(from, rows);
    for (int r = seat.lane; r < rows; r += seat.lanes) {
      const int at = r * columns + seat.column;
      slopes<T>(tile + at, slope_tile + at, l, p.act, xhat, dz);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        dz[i] = (l.a.gain[i] * dz[i] - level[i] - tilt[i] * xhat[i]) * l.rstd[i];
      }
      store_pack<T>(dx + (from + r) * half.stride, dz);
    }
  }
}

// Sums over the images: a thread a channel and every 32nd image, then those in order.
__global__ void __launch_bounds__(kSumChannels* kSumImages)
    group_norm_silu_sums_kernel(const NormBackward p, const int channels) {
  float* room = reinterpret_cast<float*>(shared_memory());
  const int lane = static_cast<int>(threadIdx.x) % kSumChannels;
  const int part = static_cast<int>(threadIdx.x) / kSumChannels;
  const int c = static_cast<int>(blockIdx.x) * kSumChannels + lane;
  const bool inside = c < channels, add = p.dadd && !p.add_per_image;
  float weight = 0.0f, bias = 0.0f, plus = 0.0f;
  for (std::int64_t image = part; inside && image < p.n; image += kSumImages) {
    const std::int64_t at = image * channels + c;
    const float lift = lift_of(p, at);
    weight = fused(lift, p.s2[at], weight);
    bias = fused(lift, p.s1[at], bias);
    if (add) plus += p.s3[at];
  }
  float* mine = room + threadIdx.x;
  constexpr int kAll = kSumChannels * kSumImages;
  mine[0] = weight, mine[kAll] = bias, mine[2 * kAll] = plus;
  __syncthreads();
  if (part > 2 || !inside) return;
  float sum = 0.0f;
  for (int i = 0; i < kSumImages; ++i) sum += room[part * kAll + i * kSumChannels + lane];
  if (part == 0) p.dweight[c] = sum;
  if (part == 1) p.dbias[c] = sum;
  if (part == 2 && add) p.dadd[c] = sum;
}

}  // namespace

void group_norm_silu_backward(const NormBackward& p, const Slabs& s, Dtype dtype, const Queue& q) {
  by_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const int wide = s.per_slab * s.width();
    const std::int64_t shared = std::int64_t{2} * s.rows * wide * static_cast<int>(sizeof(T)) +
                                norm_scratch_bytes(kPack<T>, wide);
    launch("group_norm_silu_backward", group_norm_silu_backward_kernel<T>, p.n * s.count,
           kNormThreads, static_cast<std::size_t>(shared), q, p, s);
  });
  constexpr int threads = kSumChannels * kSumImages;
  launch("group_norm_silu_backward", group_norm_silu_sums_kernel,
         (s.channels + kSumChannels - 1) / kSumChannels, threads, 3 * 4 * threads, q, p,
         s.channels);
}

}  // namespace cuda
}  // namespace kdgen
