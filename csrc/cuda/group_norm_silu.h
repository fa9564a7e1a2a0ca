// Group norm of x + add, affine, scale and shift, SiLU, channels innermost, on a GPU.
#pragma once

#include "queue.h"
#include "slabs.h"

namespace kdgen {
namespace cuda {

// Null pointers stand for absent inputs. `more` holds the channels behind those of x.
struct Norm {
  const void *x, *more;              // (n, size, first), (n, size, channels - first)
  const float *weight, *bias;        // (channels)
  const float *scale, *shift, *add;  // (n, channels); add may be (channels)
  std::int64_t n;
  float eps;
  bool act, add_per_image;
};

struct NormForward : Norm {
  void* y;
  float *mean, *rstd;  // (n, groups)
};

struct NormBackward : Norm {
  const void* dy;
  const float *mean, *rstd;
  void *dx, *dmore;
  float *s1, *s2, *s3;            // (n, channels) scratch: Σ dz, Σ dz·xhat and, with add, Σ dh
  float *dweight, *dbias;         // (channels)
  float *dscale, *dshift, *dadd;  // like their inputs; null where those are absent
};

void group_norm_silu_forward(const NormForward&, const Slabs&, Dtype, const Queue&);
void group_norm_silu_backward(const NormBackward&, const Slabs&, Dtype, const Queue&);

}  // namespace cuda
}  // namespace kdgen
