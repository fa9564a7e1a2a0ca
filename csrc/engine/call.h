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

// For this thread, until the call that it is in ends. A library that sets its own number of threads
// when it first runs on a thread undoes what the engine has set.
void use_one_thread();

}  // namespace kdgen::engine
