// The weights of a Winograd layer as they are given, in panels, and the points made of them.
//
// Points take 16/9 or 4 times the memory of taps. They are made by one function, wherever they are
// needed: when all are packed, or a few inputs at a time in cache.
#pragma once

#include "forms.h"
#include "panels.h"
#include "tables.h"

KDGEN_BEGIN
namespace engine {

constexpr std::int64_t kTaps = 9;

template <class F>
class Taps {
 public:
  static constexpr int kSquare = F::kPoints * F::kPoints;

  Taps() = default;
  // Of weights (outputs, inputs, 3, 3).
  Taps(const float* weight, std::int64_t outputs, std::int64_t inputs)
      : inputs_(inputs), taps_(4 * kTaps * outputs * inputs) {
    for_panels(0, outputs, [&](std::int64_t channel, std::int64_t width) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
      for (std::int64_t k = 0; k < inputs; ++k) {
        float* to = at(channel, width, k);
        for (std::int64_t o = 0; o < width; ++o) {
          const float* from = weight + ((channel + o) * inputs + k) * kTaps;
          float* lane = to + o / kWidth * kTaps * kWidth + o % kWidth;
          for (std::int64_t tap = 0; tap < kTaps; ++tap) lane[tap * kWidth] = from[tap];
        }
      }
    });
  }

  std::int64_t bytes() const { return taps_.bytes(); }

  // Of one input of the panel that begins at `channel`; the next inputs' follow.
  KDGEN_MEMBER float* at(std::int64_t channel, std::int64_t width, std::int64_t k) const {
    return taps_.as<float>() + kTaps * (inputs_ * channel + k * width);
  }

  // The points of inputs first … first + count, a matrix (count, width) each, `apart` floats from
  // each other.
  void points(std::int64_t channel, std::int64_t width, std::int64_t first, std::int64_t count,
              float* to, std::int64_t apart) const {
    made(at(channel, width, first), count * width, to, apart);
  }

 private:
  // Not inlined: a compiler that contracted a product and a sum in one place only would change
  // bits.
  static __attribute__((noinline, noclone)) void made(const float* taps, std::int64_t count,
                                                      float* to, std::int64_t apart) {
    constexpr int N = F::kPoints;
    for (std::int64_t o = 0; o < count; o += kWidth) {
      const float* from = taps + kTaps * o;
      both_ways<N, 3>([](const Vec* w, Vec* r) { F::weights(w, r); },
                      [&](int i, int j) { return load(from + (3 * i + j) * kWidth); },
                      [&](int i, int j, Vec v) { store(to + (i * N + j) * apart + o, v); });
    }
  }

  std::int64_t inputs_ = 0;
  Pages taps_;
};

}  // namespace engine
KDGEN_END
