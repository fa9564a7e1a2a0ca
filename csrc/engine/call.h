// A step that somebody outside the engine computes.
#pragma once

#include <functional>

#include "step.h"

namespace kdgen::engine {

// y = compute(x), for one image at a time: its share of x, and of y, which is to be written in
// full.
struct Call {
  Place x, y;
  std::function<void(void* x, void* y)> compute;  // from several threads at once; may throw
};

Step* caller(const Call& p);

}  // namespace kdgen::engine
