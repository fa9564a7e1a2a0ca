// How group norm cuts an image: into slabs of whole groups, wide enough for the memory, and a slab
// into chunks of rows that fit shared memory. Depends on the image's shape only, so an image never
// feels its batch.
#pragma once

#include <cstdint>

#include "queue.h"

#if defined(__CUDACC__)
#define KDGEN_PLAN __host__ __device__ __forceinline__
#else
#define KDGEN_PLAN inline
#endif

namespace kdgen {

constexpr int kNormThreads = 256;

// One block's share: channels [channel, channel + width), groups [group, group + groups).
struct Slab {
  int channel, width, group, groups;
};

// A thread's place in it: a column of packs, and every `lanes`-th row from `lane` on.
struct Seat {
  int column, lane, lanes;
  bool taken;  // false: this thread only keeps the barriers
};

// Where a pack's channels lie: in x, or behind it in the second input.
struct Half2 {
  bool second;
  std::int64_t offset, stride;  // of the pack in row 0 of its image, and between rows
};

struct Slabs {
  int size, channels, first, groups;  // first: channels of x; the others are the second input's
  int per_slab, count;                // groups of a full slab; slabs of an image
  int rows;                           // rows of a chunk; `size` when the slab stays in memory

  KDGEN_PLAN int width() const { return channels / groups; }
  KDGEN_PLAN bool resident() const { return rows >= size; }

  KDGEN_PLAN Slab slab(int index) const {
    const int group = index * per_slab, left = groups - group;
    const int mine = left < per_slab ? left : per_slab;
    return {group * width(), mine * width(), group, mine};
  }

  KDGEN_PLAN Seat seat(const Slab& slab, int pack, int thread) const {
    const int columns = slab.width / pack, lanes = kNormThreads / columns;
    return {thread % columns, thread / columns, lanes, thread / columns < lanes};
  }

  KDGEN_PLAN Half2 half(std::int64_t image, int channel) const {
    const bool second = channel >= first;
    const std::int64_t wide = second ? channels - first : first;
    return {second, image * size * wide + (second ? channel - first : channel), wide};
  }
};

// Bytes of shared memory beside the tiles: sums by thread, and a few numbers a group and channel.
constexpr KDGEN_PLAN std::int64_t norm_scratch_bytes(int pack, int columns_wide) {
  return (static_cast<std::int64_t>(kNormThreads) * pack + 6 * columns_wide) * 4;
}

// A run of one row: a memory sector at least, better two.
constexpr int kLongRun = 64, kShortRun = 32;
constexpr int kWorth = 16 << 10;      // bytes of a tile that make a block worth its start
constexpr int kResident = 100 << 10;  // two such blocks fit a multiprocessor of sm_90, one of sm_80
constexpr int kChunk = 32 << 10;

// The widest slab: one row of threads.
constexpr int kWidestRow = kNormThreads * 16;  // bytes
static_assert(kResident + norm_scratch_bytes(8, kWidestRow / 2) <= kMostShared,
              "a block must fit the shared memory of sm_80");

// The fewest groups a slab can have, a divisor's multiple so that all packs are whole.
inline int groups_at_least(int groups, int width, int pack, int channels) {
  int k = 1;
  while (k < groups && (k * width < channels || k * width % pack)) ++k;
  return k;
}

// `tiles` in shared memory at once (forward 1, backward 2). count is 0 where it cannot be cut.
inline Slabs plan(int size, int channels, int first, int groups, int bytes, int tiles) {
  const int width = channels / groups, pack = 16 / bytes;
  Slabs s = {size, channels, first, groups, groups, 0, size};
  if (channels % pack || first % pack) return s;
  const std::int64_t row_limit = kWidestRow / bytes;
  for (int run : {kLongRun, kShortRun}) {
    const std::int64_t worth = kWorth / (static_cast<std::int64_t>(size) * bytes) + 1;
    std::int64_t wanted = run / bytes;
    if (wanted < worth) wanted = worth < row_limit / 2 ? worth : row_limit / 2;
    s.per_slab = groups_at_least(groups, width, pack, static_cast<int>(wanted));
    const std::int64_t tile = std::int64_t{1} * size * s.per_slab * width * bytes * tiles;
    if (tile <= kResident || tiles == 1) break;
  }
  const std::int64_t wide = std::int64_t{1} * s.per_slab * width;
  if (wide > row_limit || wide % pack) return s;
  s.count = (groups + s.per_slab - 1) / s.per_slab;
  if (size * wide * bytes * tiles > kResident) {
    const std::int64_t rows = kChunk / (wide * bytes);
    s.rows = static_cast<int>(rows < 1 ? 1 : rows > size ? size : rows);
  }
  return s;
}

}  // namespace kdgen
