// softmax(scale · q kᵀ) v over the tokens of each image and head, and its gradients, on a GPU.
#pragma once

#include "queue.h"

namespace kdgen {
namespace cuda {

constexpr int kWidest = 256;  // channels of a head

// Channel c of head h of a token lies at base + image * image_number + token * number + h * width +
// c.
struct Tokens {
  void* base;
  std::int64_t image, token;  // strides
};

struct AttentionShape {
  std::int64_t n;
  int heads, size, width;  // size: tokens of an image; width: channels of a head, a multiple of 8
  Dtype dtype;             // a 16-bit one
};

struct AttentionForward {
  Tokens q, k, v, out;
  float* logsumexp;  // (n, heads, size)
  float scale;
};

struct AttentionBackward {
  Tokens dout, q, k, v, out, dq, dk, dv;
  const float* logsumexp;
  float* delta;  // (n, heads, size) scratch: Σ dout·out
  float scale;
};

void attention_forward(const AttentionForward&, const AttentionShape&, const Queue&);
void attention_backward(const AttentionBackward&, const AttentionShape&, const Queue&);

}  // namespace cuda
}  // namespace kdgen
