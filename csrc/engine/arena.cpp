#include "arena.h"

#include <algorithm>
#include <numeric>

namespace kdgen::engine {

namespace {

bool together(const Life& a, const Life& b) { return a.first <= b.last && b.first <= a.last; }

}  // namespace

Layout laid_out(const std::vector<Life>& lives) {
  std::vector<std::size_t> order(lives.size()), placed;
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lives[a].bytes > lives[b].bytes; });
  Layout layout;
  layout.offsets.resize(lives.size());
  for (const std::size_t k : order) {
    std::int64_t offset = 0;
    for (const std::size_t other : placed) {  // by rising offsets
      if (!together(lives[k], lives[other])) continue;
      if (offset + lives[k].bytes <= layout.offsets[other]) break;
      offset = std::max(offset, layout.offsets[other] + lives[other].bytes);
    }
    layout.offsets[k] = offset;
    layout.bytes = std::max(layout.bytes, offset + lives[k].bytes);
    const auto behind = std::upper_bound(
        placed.begin(), placed.end(), offset,
        [&](std::int64_t at, std::size_t other) { return at < layout.offsets[other]; });
    placed.insert(behind, k);
  }
  return layout;
}

}  // namespace kdgen::engine
