// Places one after the other, row by row, image by image. A division takes as long as the products
// of a pixel of a small network: there is one where a walk begins, and none at its steps.
#pragma once

#include "vec.h"

KDGEN_BEGIN
namespace engine {

struct Walk {
  std::int64_t rows, columns;  // of an image
  std::int64_t image, row, column;

  KDGEN_MEMBER Walk(std::int64_t rows, std::int64_t columns, std::int64_t first)
      : rows(rows),
        columns(columns),
        image(first / (rows * columns)),
        row(first / columns % rows),
        column(first % columns) {}

  KDGEN_MEMBER void next() {
    if (++column < columns) return;
    column = 0;
    if (++row < rows) return;
    row = 0;
    ++image;
  }
};

}  // namespace engine
KDGEN_END
