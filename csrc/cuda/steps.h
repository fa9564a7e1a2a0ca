// The sampler's steps, a network's input and the conversion to bytes on a GPU; args.h says what
// each argument is.
#pragma once

#include "queue.h"

namespace kdgen {
namespace cuda {

// y = a * x_t + b * clamp(x0, -clip, clip), a and b per image where given; x0 null: x_t itself.
struct Step {
  const void *x_t, *x0;
  const float *a_each, *b_each;
  float a, b, clip;  // clip <= 0: none
  Dtype dtype;
};

// Row `step` of a table (steps, 4) of (p, q, a, b): y = a * x_t + b * clamp(p * x_t + q * raw).
struct Chain {
  const void *x_t, *raw;
  const float* table;
  const std::int64_t* step;  // clamped to 0 … steps - 1
  std::int64_t steps;
  float clip;        // <= 0: none
  int raw_channels;  // from one pixel of raw to the next, channels last
  Dtype dtype, raw_dtype;
};

// What a network is given: c * x, zeros in the channels that x has not.
struct Scale {
  const void* x;
  const float* c_each;       // (n), or a table (steps) where `step` is given; null: `c` for all
  const std::int64_t* step;  // clamped to 0 … steps - 1
  std::int64_t steps;
  float c;
  int channels;
  bool channels_last;
  Dtype dtype;
};

// What is written: like x_t, or bytes (n, size, channels).
struct Answer {
  void* y;
  std::int64_t n;
  int channels, size;
  bool channels_last, bytes;
};

void step(const Step&, const Answer&, const Queue&);
void chain_step(const Chain&, const Answer&, const Queue&);
void scale_input(const Scale&, const Answer&, Dtype answers, const Queue&);

}  // namespace cuda
}  // namespace kdgen
