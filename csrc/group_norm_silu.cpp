// Group norm, affine, scale and shift, SiLU; forward and backward.
//
// Results of one image depend on that image alone: the work is cut into tasks by shape only, never
// by the number of images or threads, and partial sums are joined in a fixed order.
#include "group_norm_silu.h"

#include "group_norm_channels_last.h"
#include "group_norm_contiguous.h"

KDGEN_BEGIN
namespace {

template <bool Act, class T>
void forward(const GroupNormForward& p, char* scratch) {
  const ForwardScratch s(p, scratch);
  if (p.channels_last) {
    forward_channels_last<Act, T>(p, s);
  } else {
    forward_contiguous<Act, T>(p, s);
  }
}

template <bool Act, class T>
void backward(const GroupNormBackward& p, char* scratch) {
  const BackwardScratch s(p, scratch);
  if (p.channels_last) {
    backward_channels_last<Act, T>(p, s);
  } else {
    backward_contiguous<Act, T>(p, s);
  }
}

}  // namespace

std::int64_t forward_scratch(const GroupNormForward& p) { return ForwardScratch(p, nullptr).bytes; }

std::int64_t backward_scratch(const GroupNormBackward& p) {
  return BackwardScratch(p, nullptr).bytes;
}

void group_norm_silu_forward(const GroupNormForward& p, char* scratch) {
  switch (p.dtype) {
    case Dtype::float32:
      return p.act ? forward<true, float>(p, scratch) : forward<false, float>(p, scratch);
    case Dtype::float16:
      return p.act ? forward<true, Half>(p, scratch) : forward<false, Half>(p, scratch);
    case Dtype::bfloat16:
      return p.act ? forward<true, BFloat16>(p, scratch) : forward<false, BFloat16>(p, scratch);
  }
}

void group_norm_silu_backward(const GroupNormBackward& p, char* scratch) {
  switch (p.dtype) {
    case Dtype::float32:
      return p.act ? backward<true, float>(p, scratch) : backward<false, float>(p, scratch);
    case Dtype::float16:
      return p.act ? backward<true, Half>(p, scratch) : backward<false, Half>(p, scratch);
    case Dtype::bfloat16:
      return p.act ? backward<true, BFloat16>(p, scratch) : backward<false, BFloat16>(p, scratch);
  }
}
KDGEN_END
