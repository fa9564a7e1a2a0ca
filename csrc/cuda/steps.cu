// Four values a thread. Dtypes are looked at where values are loaded and stored, in one kernel for
// all: a branch that a whole grid takes alike costs nothing beside the memory.
#include "device.h"
#include "steps.h"

namespace kdgen {
namespace cuda {
namespace {

constexpr int kThreads = 256, kFour = 4;

// Up to four values from `at` on, in one load where they are whole and aligned.
template <class T>
KDGEN_DEVICE void load_as(const void* from, std::int64_t at, int count, float (&v)[kFour]) {
  const T* p = static_cast<const T*>(from) + at;
  if (count == kFour && reinterpret_cast<std::uintptr_t>(p) % (kFour * sizeof(T)) == 0) {
    struct alignas(kFour * sizeof(T)) Whole {
      T v[kFour];
    };
    Whole w;
    if constexpr (sizeof(T) == 4) {
      const uint4 raw = *reinterpret_cast<const uint4*>(p);
      std::memcpy(&w, &raw, sizeof w);
    } else {
      const uint2 raw = *reinterpret_cast<const uint2*>(p);
      std::memcpy(&w, &raw, sizeof w);
    }
#pragma unroll
    for (int i = 0; i < kFour; ++i) v[i] = load(w.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kFour; ++i) v[i] = i < count ? load(p[i]) : 0.0f;
}

KDGEN_DEVICE void load_four(const void* from, Dtype dtype, std::int64_t at, int count,
                            float (&v)[kFour]) {
  if (dtype == Dtype::float32) return load_as<float>(from, at, count, v);
  if (dtype == Dtype::float16) return load_as<Half>(from, at, count, v);
  load_as<BFloat16>(from, at, count, v);
}

KDGEN_DEVICE float load_one(const void* from, Dtype dtype, std::int64_t at) {
  if (dtype == Dtype::float32) return static_cast<const float*>(from)[at];
  if (dtype == Dtype::float16) return load(static_cast<const Half*>(from)[at]);
  return load(static_cast<const BFloat16*>(from)[at]);
}

template <class T>
KDGEN_DEVICE void store_as(void* to, std::int64_t at, int count, const float (&v)[kFour]) {
  T* p = static_cast<T*>(to) + at;
  T w[kFour];
#pragma unroll
  for (int i = 0; i < kFour; ++i) store(w + i, v[i]);
  if (count == kFour && reinterpret_cast<std::uintptr_t>(p) % (kFour * sizeof(T)) == 0) {
    if constexpr (sizeof(T) == 4) {
      uint4 raw;
      std::memcpy(&raw, w, sizeof raw);
      *reinterpret_cast<uint4*>(p) = raw;
    } else {
      uint2 raw;
      std::memcpy(&raw, w, sizeof raw);
      *reinterpret_cast<uint2*>(p) = raw;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    if (i < count) p[i] = w[i];
  }
}

// Four answers that start at value `at` of the input. Bytes have channels innermost.
KDGEN_DEVICE void answer(const Answer& out, Dtype dtype, std::int64_t at, int count,
                         const float (&v)[kFour]) {
  if (!out.bytes) {
    if (dtype == Dtype::float32) return store_as<float>(out.y, at, count, v);
    if (dtype == Dtype::float16) return store_as<Half>(out.y, at, count, v);
    return store_as<BFloat16>(out.y, at, count, v);
  }
  std::uint8_t* y = static_cast<std::uint8_t*>(out.y);
  if (out.channels_last && count == kFour) {  // `at` is a multiple of four, and torch aligns
    *reinterpret_cast<std::uint32_t*>(y + at) =
        grey_level(v[0]) | grey_level(v[1]) << 8 | grey_level(v[2]) << 16 | grey_level(v[3]) << 24;
    return;
  }
  const std::int64_t image = static_cast<std::int64_t>(out.channels) * out.size;
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    std::int64_t to = at + i;
    if (i >= count) break;
    if (!out.channels_last) {
      const std::int64_t base = to / image * image, inside = to - base;
      to = base + inside % out.size * out.channels + inside / out.size;
    }
    y[to] = static_cast<std::uint8_t>(grey_level(v[i]));
  }
}

KDGEN_DEVICE std::int64_t first_value() {
  return (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kFour;
}

KDGEN_DEVICE int count_from(std::int64_t at, std::int64_t total) {
  const std::int64_t left = total - at;
  return left >= kFour ? kFour : static_cast<int>(left < 0 ? 0 : left);
}

// The row of a table that a number on the device means: the nearest there is.
KDGEN_DEVICE std::int64_t row_of(const std::int64_t* step, std::int64_t steps) {
  const std::int64_t row = *step;
  return row < 0 ? 0 : row > steps - 1 ? steps - 1 : row;
}

KDGEN_DEVICE float limit_of(float clip) { return clip > 0.0f ? clip : float_of(0x7f800000u); }

__global__ void __launch_bounds__(kThreads) step_kernel(const Step s, const Answer out) {
  const std::int64_t image = static_cast<std::int64_t>(out.channels) * out.size;
  const std::int64_t at = first_value();
  const int count = count_from(at, out.n * image);
  if (!count) return;
  float v[kFour], x0[kFour];
  load_four(s.x_t, s.dtype, at, count, v);
  if (s.x0) {
    const float limit = limit_of(s.clip);
    load_four(s.x0, s.dtype, at, count, x0);
#pragma unroll
    for (int i = 0; i < kFour; ++i) {
      const bool each = i < count && (s.a_each || s.b_each);
      const std::int64_t k = each ? (at + i) / image : 0;
      const float a = s.a_each && each ? s.a_each[k] : s.a;
      const float b = s.b_each && each ? s.b_each[k] : s.b;
      const float stay = a * v[i];
      v[i] = stay + b * clamp(x0[i], -limit, limit);
    }
  }
  answer(out, s.dtype, at, count, v);
}

__global__ void __launch_bounds__(kThreads) chain_step_kernel(const Chain c, const Answer out) {
  const std::int64_t at = first_value();
  const int count = count_from(at, out.n * out.channels * out.size);
  if (!count) return;
  const std::int64_t row = row_of(c.step, c.steps);
  const float p = c.table[4 * row], q = c.table[4 * row + 1], a = c.table[4 * row + 2],
              b = c.table[4 * row + 3], limit = limit_of(c.clip);
  float v[kFour], raw[kFour];
  load_four(c.x_t, c.dtype, at, count, v);
  if (c.raw_channels == out.channels) {
    load_four(c.raw, c.raw_dtype, at, count, raw);
  } else {  // between the channels of a wider tensor
#pragma unroll
    for (int i = 0; i < kFour; ++i) {
      const std::int64_t from = (at + i) / out.channels * c.raw_channels + (at + i) % out.channels;
      raw[i] = i < count ? load_one(c.raw, c.raw_dtype, from) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    const float stay = p * v[i], keep = a * v[i];
    v[i] = keep + b * clamp(stay + q * raw[i], -limit, limit);
  }
  answer(out, c.dtype, at, count, v);
}

// Channels innermost, `out.channels` of them; the input may have fewer, and have them apart.
__global__ void __launch_bounds__(kThreads)
    scale_input_kernel(const Scale s, const Answer out, const Dtype answers) {
  const std::int64_t at = first_value();
  const int count = count_from(at, out.n * out.channels * out.size);
  if (!count) return;
  const bool whole = s.channels_last && s.channels == out.channels;
  const float one = !s.c_each ? s.c : s.step ? s.c_each[row_of(s.step, s.steps)] : 0.0f;
  float v[kFour] = {};
  if (whole) load_four(s.x, s.dtype, at, count, v);
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    if (i >= count) break;
    const std::int64_t pixel = (at + i) / out.channels, image = pixel / out.size;
    const std::int64_t channel = (at + i) % out.channels;
    if (channel >= s.channels) {
      v[i] = 0.0f;  // whatever the factor: 0 times infinity would be no number
      continue;
    }
    if (!whole) {
      const std::int64_t plane = image * s.channels + channel;
      const std::int64_t apart = plane * out.size + pixel % out.size;
      v[i] = load_one(s.x, s.dtype, s.channels_last ? pixel * s.channels + channel : apart);
    }
    v[i] *= s.c_each && !s.step ? s.c_each[image] : one;
  }
  answer(out, answers, at, count, v);
}

std::int64_t blocks_of(const Answer& out) {
  const std::int64_t each = kThreads * kFour, total = out.n * out.channels * out.size;
  return (total + each - 1) / each;
}

}  // namespace

void step(const Step& s, const Answer& out, const Queue& q) {
  launch("ddim_update", step_kernel, blocks_of(out), kThreads, 0, q, s, out);
}

void chain_step(const Chain& c, const Answer& out, const Queue& q) {
  launch("chain_step", chain_step_kernel, blocks_of(out), kThreads, 0, q, c, out);
}

void scale_input(const Scale& s, const Answer& out, Dtype answers, const Queue& q) {
  launch("scale_input", scale_input_kernel, blocks_of(out), kThreads, 0, q, s, out, answers);
}

}  // namespace cuda
}  // namespace kdgen
