// What both directions of the group norm share: constants of a thread's channels, tiles, sums.
#pragma once

#include "device.h"
#include "group_norm_silu.h"

namespace kdgen {
namespace cuda {

constexpr int kNormBlocks = 3;  // that share a multiprocessor, as far as registers go

// z = normalise(x + add) * gain + offset, for a thread's channels.
template <int V>
struct Affine {
  float add[V], gain[V], offset[V];
};

KDGEN_DEVICE float lift_of(const Norm& p, std::int64_t at) {
  return p.scale ? 1.0f + p.scale[at] : 1.0f;
}

// V numbers from an aligned place; V is a multiple of four.
template <int V>
KDGEN_DEVICE void read(const float* from, float (&v)[V]) {
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    float four[4];
    load_pack<float>(from + i, four);
#pragma unroll
    for (int j = 0; j < 4; ++j) v[i + j] = four[j];
  }
}

template <int V>
KDGEN_DEVICE void read_add(const Norm& p, std::int64_t image, int channels, int channel,
                           float (&add)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) add[i] = 0.0f;
  if (p.add) read(p.add + (p.add_per_image ? image * channels : 0) + channel, add);
}

template <int V>
KDGEN_DEVICE void read_affine(const Norm& p, std::int64_t image, int channels, int channel,
                              Affine<V>* a) {
  read_add(p, image, channels, channel, a->add);
  read(p.weight + channel, a->gain);
  read(p.bias + channel, a->offset);
  const std::int64_t at = image * channels + channel;
  float each[V];
  if (p.scale) {
    read(p.scale + at, each);
#pragma unroll
    for (int i = 0; i < V; ++i) a->gain[i] *= 1.0f + each[i], a->offset[i] *= 1.0f + each[i];
  }
  if (p.shift) {
    read(p.shift + at, each);
#pragma unroll
    for (int i = 0; i < V; ++i) a->offset[i] += each[i];
  }
}

// `value` of the group of each of a thread's channels.
template <int V>
KDGEN_DEVICE void of_group(const float* value, int channel_in_slab, int width, float (&out)[V]) {
  int group = channel_in_slab / width, next = (group + 1) * width;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (channel_in_slab + i == next) ++group, next += width;
    out[i] = value[group];
  }
}

// Starts the copies of this thread's packs of rows [from, from + rows) into `tile`; only this
// thread reads them, so that a wait is enough and no barrier is needed.
template <class T>
KDGEN_DEVICE void fetch(Pack* tile, const void* base, const Half2& h, const Seat& seat, int columns,
                        int from, int rows) {
  if (!seat.taken) return;
  const T* source = static_cast<const T*>(base) + h.offset + from * h.stride;
  for (int r = seat.lane; r < rows; r += seat.lanes) {
    copy_behind(tile + r * columns + seat.column, source + r * h.stride);
  }
}

// Lays out one value a thread and channel for the sums over rows: (lanes, slab's channels).
template <int V>
KDGEN_DEVICE void lay_out(const float (&mine)[V], float* room, const Seat& seat, int width) {
  if (!seat.taken) return;
  float* to = room + seat.lane * width + seat.column * V;
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = mine[i];
}

// total[g] = Σ over rows and channels of group g of the slab, for all threads to read.
template <int V>
KDGEN_DEVICE void group_sums(const float (&mine)[V], float* room, float* total, const Seat& seat,
                             const Slab& slab, int width) {
  lay_out(mine, room, seat, slab.width);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int g = static_cast<int>(threadIdx.x) / 32; g < slab.groups; g += kNormThreads / 32) {
    float sum = 0.0f;
    for (int i = lane; i < seat.lanes * width; i += 32) {
      sum += room[i / width * slab.width + g * width + i % width];
    }
    sum = warp_sum(sum);
    if (lane == 0) total[g] = sum;
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace kdgen
