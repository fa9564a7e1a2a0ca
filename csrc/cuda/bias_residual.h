// y = (x + bias + residual) * scale on a GPU, and the way back.
#pragma once

#include "queue.h"

namespace kdgen {
namespace cuda {

// Dense images; inside one (channels, size) or, channels last, (size, channels).
struct Planes {
  std::int64_t n;
  int channels, size;
  bool channels_last;
};

struct BiasResidual {
  const void *x, *residual;
  const float* bias;  // (channels), or null
  void* y;
  float scale;
};

struct BiasResidualBackward {
  const void* dy;
  void* dx;                // null: not wanted
  float *dbias, *partial;  // (channels) and scratch (bias_parts, channels); null: not wanted
  float scale;
};

// Rows of scratch that the sums of a backward pass need.
std::int64_t bias_parts(const Planes&);

void bias_residual(const BiasResidual&, const Planes&, Dtype, const Queue&);
void bias_residual_backward(const BiasResidualBackward&, const Planes&, Dtype, const Queue&);

}  // namespace cuda
}  // namespace kdgen
