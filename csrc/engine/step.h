// What a network is made of for the engine: buffers, and steps that fill one from others.
#pragma once

#include <cstdint>

#include "../args.h"

// The sources of the steps are compiled once per instruction set, and a function that the compiler
// did not inline there could be linked into another set's code.
#define KDGEN_MEMBER inline __attribute__((always_inline))

namespace kdgen::engine {

constexpr std::int64_t kBlock = 16;  // channels of every buffer are a multiple of it

// One image's share of a buffer: pixels in rows, channels innermost.
struct Shape {
  std::int64_t height, width, channels;
  Dtype dtype;
  KDGEN_MEMBER std::int64_t pixels() const { return height * width; }
  KDGEN_MEMBER std::int64_t values() const { return pixels() * channels; }
  KDGEN_MEMBER std::int64_t bytes() const { return values() * (dtype == Dtype::float32 ? 4 : 2); }
};

// A buffer as a step knows it.
struct Place {
  int id = -1;
  Shape shape = {0, 0, 0, Dtype::float32};
  KDGEN_MEMBER explicit operator bool() const { return id >= 0; }
};

// The images that go through all steps together.
struct Group {
  char* const* at;  // where each buffer begins; the images lie one after another
  std::int64_t images;
  const std::int32_t* rows;  // of tables, one an image; null where every table has one row
  const float* input;
  float* output;
  int workers;  // threads that share the tasks of a step

  template <class T>
  KDGEN_MEMBER T* image(const Place& place, std::int64_t n) const {
    return reinterpret_cast<T*>(at[place.id]) + n * place.shape.values();
  }
  // Of a table of `count` rows.
  KDGEN_MEMBER std::int64_t row(std::int64_t n, std::int64_t count) const {
    return rows && count > 1 ? rows[n] % count : 0;
  }
};

// Tasks of one step are independent of each other. What they compute for an image depends neither
// on how it was cut into tasks nor on the other images of the group.
class Step {
 public:
  virtual ~Step();
  virtual std::int64_t tasks(const Group& group) const = 0;
  // Bytes that a task needs to itself, for a group of at most so many images.
  virtual std::int64_t scratch(std::int64_t images) const = 0;
  virtual void run(const Group& group, std::int64_t task, char* scratch) const = 0;
  // Bytes of weights, as they are kept.
  virtual std::int64_t packed() const;
  // Multiply-adds for one image, of steps that have many.
  virtual std::int64_t work() const;
};

enum class Form : int { direct, winograd2, winograd4, up_direct, up_winograd };

// What a convolution multiplies: its input and weights as they are, or rounded for it.
enum class Product : int { float32 = 0, bfloat16 = 2, int8 = 3 };

// y = (conv(x, more) + bias[row] + residual) * scale. Weights are (channels of y, channels of x and
// more, kernel, kernel), biases (rows, channels of y); both are copied.
struct Convolve {
  Place x, more, residual, y;
  const float *weight, *bias;
  std::int64_t rows;
  std::int64_t kernel, stride, before;  // before: zeros above and left
  Form form;
  Product product;
  float scale;
};

// Per channel, of one image: its mean and its sum of squared deviations, (2, channels of x).
struct Moments {
  Place x, y;
};

// y = act(norm(x, more) * gain[row] + offset[row]) by the moments of x and more.
struct Normalise {
  Place x, more, y, x_moments, more_moments;
  const float *gain, *offset;  // (rows, channels of y), copied
  std::int64_t rows;
  std::int64_t groups, own, others;  // own of x's channels and others of more's mean something
  float eps;
  bool act;
};

// A slice of a buffer's channels.
struct Slice {
  Place place;
  std::int64_t first = 0;
};

// For every head, softmax(q kᵀ scale) v.
struct Attend {
  Slice q, k, v;
  Place y;
  std::int64_t heads, width;  // width: channels of a head
  float scale;                // not negative
};

// A separable filter that halves or doubles the size.
struct Resample {
  Place x, y;
  const float* taps;  // copied
  std::int64_t count, before;
  bool up;
};

// y = a[row] * x + b[row] * more.
struct Combine {
  Place x, more, y;
  const float *a, *b;  // (rows), copied
  std::int64_t rows;
};

// Images (n, height, width, channels) in and out; a buffer has more channels.
struct Ends {
  Place place;
  std::int64_t channels;
};

}  // namespace kdgen::engine
