// What both layouts of the group norm share: per-channel constants, and what follows from the sums.
#pragma once

#include <cmath>

#include "group_norm_scratch.h"
#include "math.h"
#include "parallel.h"
#include "target.h"

KDGEN_BEGIN

// Float sums are carried over into double after this many terms.
constexpr std::int64_t kRun = 4096;

// One channel of one image: z = normalise(x + add) * gain + offset.
struct Gain {
  float add, gain, offset;
};

inline Gain gain_of(const GroupNorm& p, std::int64_t image, std::int64_t c) {
  const std::int64_t at = image * p.channels + c;
  const float lift = p.scale ? 1.0f + p.scale[at] : 1.0f, shift = p.shift ? p.shift[at] : 0.0f;
  return {p.add ? p.add[p.add_per_image ? at : c] : 0.0f, p.weight[c] * lift,
          p.bias[c] * lift + shift};
}

// The statistics of a group, rounded once.
struct Moments {
  float mean, rstd;
};

inline Moments moments(double mean, double variance, float eps) {
  return {static_cast<float>(mean),
          static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)))};
}

// dx = ((dz * gain + level) + xhat * tilt) * rstd, level and tilt one for a group.
struct Return {
  float level, tilt;
};

// What follows from Σ dz, Σ dz·xhat and Σ xhat of each channel of each image.
struct Gradients {
  const GroupNormBackward& p;
  const BackwardScratch& s;

  // For the group of channels that starts at `first`. Afterwards the sums' `xhat` is Σ dx.
  Return join(std::int64_t image, std::int64_t first, float rstd) const {
    Sums* sums = s.sums + image * p.channels + first;
    const std::int64_t width = p.channels / p.groups;
    const double size = static_cast<double>(p.size), count = static_cast<double>(width) * size;
    double g1 = 0, g2 = 0;
    for (std::int64_t d = 0; d < width; ++d) {
      const float gain = gain_of(p, image, first + d).gain;
      keep(image, first + d, sums[d]);
      g1 += gain * sums[d].dz;
      g2 += gain * sums[d].dz_xhat;
    }
    const double level = -g1 / count, tilt = -g2 / count;
    for (std::int64_t d = 0; p.dadd && d < width; ++d) {
      const double own = sums[d].dz * gain_of(p, image, first + d).gain;
      sums[d].xhat = rstd * (own + (size * level + sums[d].xhat * tilt));
      if (p.add_per_image) {
        p.dadd[image * p.channels + first + d] = static_cast<float>(sums[d].xhat);
      }
    }
    return {static_cast<float>(level), static_cast<float>(tilt)};
  }

  // Sums over the images, always in the order of the images.
  void finish() const {
    constexpr std::int64_t block = 64;
    const int threads = useful_threads(p.n * p.channels, p.threads);
    parallel_for((p.channels + block - 1) / block, threads, [&](std::int64_t task) {
      const std::int64_t from = task * block, width = smaller(block, p.channels - from);
      double weight[block] = {}, bias[block] = {}, add[block] = {};
      for (std::int64_t image = 0; image < p.n; ++image) {
        const std::int64_t at = image * p.channels + from;
        for (std::int64_t c = 0; c < width; ++c) {
          const double lift = p.scale ? 1.0 + p.scale[at + c] : 1.0;
          weight[c] += lift * s.sums[at + c].dz_xhat;
          bias[c] += lift * s.sums[at + c].dz;
          add[c] += s.sums[at + c].xhat;
        }
      }
      for (std::int64_t c = 0; c < width; ++c) {
        p.dweight[from + c] = static_cast<float>(weight[c]);
        p.dbias[from + c] = static_cast<float>(bias[c]);
        if (p.dadd && !p.add_per_image) p.dadd[from + c] = static_cast<float>(add[c]);
      }
    });
  }

 private:
  void keep(std::int64_t image, std::int64_t c, const Sums& v) const {
    const std::int64_t at = image * p.channels + c;
    if (p.dshift) p.dshift[at] = static_cast<float>(v.dz);
    if (p.dscale) p.dscale[at] = static_cast<float>(p.weight[c] * v.dz_xhat + p.bias[c] * v.dz);
  }
};

// dz needs float; where dx is float too, it is kept there until dx replaces it.
template <class T>
float* slopes(const GroupNormBackward& p, const BackwardScratch& s, const Strip& strip) {
  if (sizeof(T) == sizeof(float)) return static_cast<float*>(strip.more ? p.dmore : p.dx);
  return s.slopes + p.n * p.size * strip.from;
}

KDGEN_END
