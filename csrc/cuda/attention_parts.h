// What both directions of attention share: which rows a block has, tiles in and out.
#pragma once

#include "attention.h"
#include "fragments.h"

namespace kdgen {
namespace cuda {

constexpr int kRows = 64, kThreads = 128;  // rows of a block, sixteen a warp
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// One block's image, head and first row.
struct Place {
  std::int64_t image;
  int head, row;
};

KDGEN_DEVICE Place place_of(const AttentionShape& s) {
  const unsigned tiles = static_cast<unsigned>((s.size + kRows - 1) / kRows);
  const unsigned tile = blockIdx.x % tiles, both = blockIdx.x / tiles;
  const unsigned heads = static_cast<unsigned>(s.heads);
  return {both / heads, static_cast<int>(both % heads), static_cast<int>(tile) * kRows};
}

static inline std::int64_t blocks_of(const AttentionShape& s) {
  return s.n * s.heads * ((s.size + kRows - 1) / kRows);
}

KDGEN_DEVICE int warp_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }

template <class T>
KDGEN_DEVICE T* head_of(const Tokens& t, const AttentionShape& s, const Place& at) {
  return static_cast<T*>(t.base) + at.image * t.image + std::int64_t{1} * at.head * s.width;
}

// Starts copies of rows [from, from + count) into a tile; zeros beyond the last token and channel.
template <class T, int D>
KDGEN_DEVICE void fetch(const Tile<D>& tile, const Tokens& t, const AttentionShape& s,
                        const Place& at, int from, int count) {
  const T* head = head_of<T>(t, s, at);
  for (int i = static_cast<int>(threadIdx.x); i < count * Tile<D>::kPacks; i += kThreads) {
    const int row = i / Tile<D>::kPacks, pack = i % Tile<D>::kPacks;
    const bool live = from + row < s.size && pack * 8 < s.width;
    copy_behind(tile.at(row, pack), live ? head + (from + row) * t.token + pack * 8 : head, live);
  }
}

// Writes this warp's sixteen rows of answers by way of `tile`, whose rows no other warp looks at.
template <class T, int D>
KDGEN_DEVICE void write(const float (&c)[D / 8][4], const Tile<D>& tile, const Tokens& t,
                        const AttentionShape& s, const Place& at) {
  __syncwarp();
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t* word =
          reinterpret_cast<std::uint32_t*>(tile.at(warp_row() + lane_row() + 8 * half, j));
      word[lane_column() / 2] = paired<T>(c[j][2 * half], c[j][2 * half + 1]);
    }
  }
  __syncwarp();
  T* head = head_of<T>(t, s, at);
  for (int i = lane(); i < 16 * Tile<D>::kPacks; i += 32) {
    const int row = warp_row() + i / Tile<D>::kPacks, pack = i % Tile<D>::kPacks;
    if (at.row + row >= s.size || pack * 8 >= s.width) continue;
    *reinterpret_cast<Pack*>(head + (at.row + row) * t.token + pack * 8) = *tile.at(row, pack);
  }
}

// `call` with a storage type and the number of channels that the kernels pad a head to.
template <class Call>
void by_width(const AttentionShape& s, const Call& call) {
  const auto widths = [&](auto value) {
    if (s.width <= 64) return call(value, std::integral_constant<int, 64>{});
    if (s.width <= 128) return call(value, std::integral_constant<int, 128>{});
    call(value, std::integral_constant<int, 256>{});
  };
  if (s.dtype == Dtype::float16) return widths(Half{});
  widths(BFloat16{});
}

}  // namespace cuda
}  // namespace kdgen
