// What an op is told: raw pointers, sizes, a dtype code, the number of threads. No torch, no
// Python.
#pragma once

#include <cstdint>

namespace kdgen {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Group norm of x + add, affine, scale and shift, SiLU. Null pointers stand for absent inputs.
// Images lie one after another; inside one, (channels, size) or, channels last, (size, channels).
// Channels last, those from `own` on may come from `more`, a tensor of its own.
struct GroupNorm {
  const void* x;
  const float *weight, *bias;        // (channels)
  const float *scale, *shift, *add;  // (n, channels); add may be (channels)
  std::int64_t n, channels, size, groups;
  float eps;
  bool act, channels_last, add_per_image;
  Dtype dtype;
  int threads;
  const void* more;
  std::int64_t own;  // channels of x; all of them when there is no more
};

struct GroupNormForward : GroupNorm {
  void* y;
  float *mean, *rstd;  // (n, groups)
};

struct GroupNormBackward : GroupNorm {
  const void* dy;
  const float *mean, *rstd;
  void *dx, *dmore;               // like x and more
  float *dweight, *dbias;         // (channels)
  float *dscale, *dshift, *dadd;  // like their inputs; null where those are absent
};

// y = a * x_t + b * clamp(x0, -clip, clip); a and b per image where `a_each`, `b_each` are given.
struct DdimUpdate {
  const void *x_t, *x0;
  void* y;
  const float *a_each, *b_each;
  float a, b, clip;  // clip <= 0: none
  std::int64_t n, per_image;
  Dtype dtype;
  int threads;
};

// Bytes (n, size, channels) from images in either layout; with x0 given, of the DDIM update.
struct ToUint8 {
  DdimUpdate step;  // step.x0 null: x_t itself is the image; step.y: the bytes
  std::int64_t channels, size;
  bool channels_last;
};

// y = (x + bias + residual) * scale; a null bias is none. Layouts as in GroupNorm.
struct BiasResidual {
  const void *x, *residual;
  const float* bias;  // (channels)
  void* y;
  float scale;
  std::int64_t n, channels, size;
  bool channels_last;
  Dtype dtype;
  int threads;
};

// dx = dy * scale, and dbias its sums over everything but the channels; a null one is not wanted.
struct BiasResidualBackward {
  const void* dy;
  void* dx;
  float *dbias, *partial;  // (channels), (n, channels)
  float scale;
  std::int64_t n, channels, size;
  bool channels_last;
  Dtype dtype;
  int threads;
};

// Row `step` of a table (steps, 4) of (p, q, a, b): y = a * x_t + b * clamp(p * x_t + q * raw).
struct ChainStep {
  const void *x_t, *raw;
  void* y;  // like x_t, or bytes (n, size, channels)
  const float* table;
  const std::int64_t* step;  // clamped to 0 ... steps - 1
  std::int64_t steps;
  float clip;  // <= 0: none
  std::int64_t n, channels, size;
  std::int64_t raw_channels;  // from one pixel of raw to the next, channels last
  bool channels_last, bytes;
  Dtype dtype, raw_dtype;
  int threads;
};

// y (n, size, out_channels) = c * x, zeros in the channels that x has not.
struct ScaleInput {
  const void* x;
  void* y;
  const float* c_each;       // (n), or a table (steps) when `step` is given; null: `c` for all
  const std::int64_t* step;  // clamped to 0 ... steps - 1
  std::int64_t steps;
  float c;
  std::int64_t n, channels, size, out_channels;
  bool channels_last;  // x; y always is
  Dtype dtype, out_dtype;
  int threads;
};

enum class Draw : int { words, uniform, normal };

struct Philox {
  std::uint64_t seed;
  std::uint32_t stream;
  const std::int64_t* index;
  void* out;  // (n, size): int64 for words, else float
  std::int64_t n, size;
  Draw draw;
  int threads;
};

// One instruction set's versions of the ops.
struct Table {
  const char* name;
  // Bytes of working memory the group norms need; the caller allocates them.
  std::int64_t (*forward_scratch)(const GroupNormForward&);
  std::int64_t (*backward_scratch)(const GroupNormBackward&);
  void (*group_norm_silu_forward)(const GroupNormForward&, char* scratch);
  void (*group_norm_silu_backward)(const GroupNormBackward&, char* scratch);
  void (*ddim_update)(const DdimUpdate&);
  void (*to_uint8)(const ToUint8&);
  void (*bias_residual)(const BiasResidual&);
  void (*bias_residual_backward)(const BiasResidualBackward&);
  void (*chain_step)(const ChainStep&);
  void (*scale_input)(const ScaleInput&);
  void (*philox)(const Philox&);
};

}  // namespace kdgen
