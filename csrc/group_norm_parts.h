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

// Channels last, for `image`, or for all of them where they are alike.
inline void lay_out(const GroupNorm& p, const Constants& of, std::int64_t image) {
  const std::int64_t at = image * of.step;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const Gain k = gain_of(p, image, c);
    of.add[at + c] = k.add;
    of.gain[at + c] = k.gain;
    of.offset[at + c] = k.offset;
  }
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
  const std::int64_t width;  // of a group
  const double size, share;  // of a value in its group's mean

  Gradients(const GroupNormBackward& args, const BackwardScratch& scratch)
      : p(args),
        s(scratch),
        width(p.channels / p.groups),
        size(static_cast<double>(p.size)),
        share(1.0 / (static_cast<double>(width) * size)) {}

  // For the group of channels that starts at `first`, whose gains are `gain(0)`, … Afterwards the
  // sums' `xhat` is Σ dx.
  template <class GainOf>
  Return join(std::int64_t image, std::int64_t first, float rstd, const GainOf& gain) const {
    const std::int64_t at = image * p.channels + first;
    const ChannelSums sums = s.sums.from(at);
    double g1 = 0, g2 = 0;
    for (std::int64_t d = 0; d < width; ++d) {
      g1 += gain(d) * sums.dz[d];
      g2 += gain(d) * sums.dz_xhat[d];
    }
    const double level = -g1 * share, tilt = -g2 * share;
    if (p.dscale || p.dshift) keep(at, first, sums);
    for (std::int64_t d = 0; p.dadd && d < width; ++d) {
      const double own = sums.dz[d] * gain(d);
      sums.xhat[d] = rstd * (own + (size * level + sums.xhat[d] * tilt));
      if (p.add_per_image) p.dadd[at + d] = static_cast<float>(sums.xhat[d]);
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
          weight[c] += lift * s.sums.dz_xhat[at + c];
          bias[c] += lift * s.sums.dz[at + c];
          add[c] += s.sums.xhat[at + c];
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
  void keep(std::int64_t at, std::int64_t first, const ChannelSums& v) const {
    for (std::int64_t d = 0; d < width; ++d) {
      const float weight = p.weight[first + d], bias = p.bias[first + d];
      if (p.dshift) p.dshift[at + d] = static_cast<float>(v.dz[d]);
      if (p.dscale) p.dscale[at + d] = static_cast<float>(weight * v.dz_xhat[d] + bias * v.dz[d]);
    }
  }
};

// dz needs float; where dx is float too, it is kept there until dx replaces it.
template <class T>
float* slopes(const GroupNormBackward& p, const BackwardScratch& s, const Strip& strip) {
  if (sizeof(T) == sizeof(float)) return static_cast<float*>(strip.more ? p.dmore : p.dx);
  return s.slopes + p.n * p.size * strip.from;
}

KDGEN_END
