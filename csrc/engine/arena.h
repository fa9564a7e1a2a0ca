// Where each buffer lies in one block of memory, so that those which are never needed at the same
// time share it.
#pragma once

#include <cstdint>
#include <vector>

namespace kdgen::engine {

// A buffer of `bytes`, needed from the step that writes it to the last one that reads it.
struct Life {
  std::int64_t bytes;
  std::int64_t first, last;
};

struct Layout {
  std::vector<std::int64_t> offsets;
  std::int64_t bytes = 0;
};

// Large ones are placed first, each at the lowest offset that is free all its life.
Layout laid_out(const std::vector<Life>& lives);

}  // namespace kdgen::engine
