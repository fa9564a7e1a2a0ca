// Group norm where a group's values lie together: one task is one group of one image.
#pragma once

#include "group_norm_parts.h"
#include "lanes.h"

KDGEN_BEGIN

// A channel's constants are one number along its row, or, where rows are too short to be worth a
// loop (4x4 and 2x2 images), are spread out beforehand, one for each value of the group.
struct Same {
  Gain k;
  float add(std::int64_t) const { return k.add; }
  float gain(std::int64_t) const { return k.gain; }
  float offset(std::int64_t) const { return k.offset; }
};

struct Each {
  const float *adds, *gains, *offsets;
  float add(std::int64_t i) const { return adds[i]; }
  float gain(std::int64_t i) const { return gains[i]; }
  float offset(std::int64_t i) const { return offsets[i]; }
};

constexpr std::int64_t kShort = 128;  // rows below this are spread out

inline bool spread_out(const GroupNorm& p) {
  return p.size < kShort && p.channels / p.groups * p.size <= kRun;
}

inline Each spread(const GroupNorm& p, std::int64_t image, std::int64_t group, float* to) {
  const std::int64_t width = p.channels / p.groups, count = width * p.size;
  for (std::int64_t d = 0, i = 0; d < width; ++d) {
    const Gain k = gain_of(p, image, group * width + d);
    for (std::int64_t s = 0; s < p.size; ++s, ++i) {
      to[i] = k.add;
      to[count + i] = k.gain;
      to[2 * count + i] = k.offset;
    }
  }
  return {to, to + count, to + 2 * count};
}

// The constants of all groups, spread out once, or of one group into `own`.
struct Spread {
  const GroupNorm& p;
  float* shared;  // 3 * channels * size, or null

  Spread(const GroupNorm& args, float* memory) : p(args), shared(memory) {
    if (!shared) return;
    for (std::int64_t g = 0; g < p.groups; ++g) spread(p, 0, g, of(g));
  }

  Each operator()(std::int64_t image, std::int64_t group, float* own) const {
    const std::int64_t count = p.channels / p.groups * p.size;
    if (!shared) return spread(p, image, group, own);
    return {of(group), of(group) + count, of(group) + 2 * count};
  }

 private:
  float* of(std::int64_t group) const {
    return shared + 3 * (p.channels / p.groups) * p.size * group;
  }
};

// ---- forward ------------------------------------------------------------------------------------

// Σ d and Σ d² of d = (x + add) - origin.
struct Powers {
  double first, second;
};

template <class T, class K>
Powers powers(const T* x, std::int64_t n, float origin, K k) {
  double s1 = 0, s2 = 0;
#pragma omp simd reduction(+ : s1, s2)
  for (std::int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>((load(x[i]) + k.add(i)) - origin);
    s1 += d;
    s2 += d * d;
  }
  return {s1, s2};
}

// One pass, in double, about a value of the group itself: an offset costs nothing, and even an
// outlier for an origin leaves more digits than a float has.
inline Moments measured(const Powers& v, std::int64_t count, float origin, float eps) {
  const double share = 1.0 / static_cast<double>(count), gap = v.first * share;
  const double variance = v.second * share - gap * gap;
  return moments(origin + gap, variance < 0 ? 0 : variance, eps);
}

template <class T, class K>
KDGEN_INLINE float normalised(T x, float mean, float rstd, const K& k, std::int64_t i) {
  return ((load(x) + k.add(i)) - mean) * rstd;
}

template <bool Act, class T, class K>
void apply_row(const T* __restrict x, T* __restrict y, std::int64_t n, const Moments& m, K k) {
  const float mean = m.mean, rstd = m.rstd;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = fused(normalised(x[i], mean, rstd, k, i), k.gain(i), k.offset(i));
    store(y + i, Act ? silu(z) : z);
  }
}

template <bool Act, class T>
void forward_contiguous(const GroupNormForward& p, const ForwardScratch& s) {
  const std::int64_t width = p.channels / p.groups, count = width * p.size;
  const int threads = useful_threads(p.n * p.channels * p.size, p.threads);
  const bool flat = spread_out(p);
  const Spread constants(p, flat && alike(p) ? s.constants : nullptr);
  parallel_for(p.n * p.groups, threads, [&](std::int64_t task) {
    const std::int64_t image = task / p.groups, first = task % p.groups * width;
    const T* x = static_cast<const T*>(p.x) + task * count;
    T* y = static_cast<T*>(p.y) + task * count;
    const float origin = load(x[0]) + gain_of(p, image, first).add;
    Moments m;
    if (flat) {
      float own[3 * kRun];
      const Each k = constants(image, task % p.groups, own);
      m = measured(powers(x, count, origin, k), count, origin, p.eps);
      apply_row<Act>(x, y, count, m, k);
    } else {
      Powers all = {0, 0};
      for (std::int64_t d = 0; d < width; ++d) {
        const Same k = {gain_of(p, image, first + d)};
        const Powers row = powers(x + d * p.size, p.size, origin, k);
        all = {all.first + row.first, all.second + row.second};
      }
      m = measured(all, count, origin, p.eps);
      for (std::int64_t d = 0; d < width; ++d) {
        apply_row<Act>(x + d * p.size, y + d * p.size, p.size, m,
                       Same{gain_of(p, image, first + d)});
      }
    }
    p.mean[task] = m.mean;
    p.rstd[task] = m.rstd;
  });
}

// ---- backward -----------------------------------------------------------------------------------

// dz of one row, and its sums.
template <bool Act, class T>
Sums slope_row(const T* __restrict x, const T* __restrict dy, float* __restrict dz, std::int64_t n,
               float mean, float rstd, Same k) {
  Sums total = {0, 0, 0};
  for (std::int64_t at = 0; at < n; at += kRun) {
    const std::int64_t end = smaller(n, at + kRun);
    float s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s1, s2, s3)
    for (std::int64_t i = at; i < end; ++i) {
      const float xhat = normalised(x[i], mean, rstd, k, i);
      const float slope = Act ? silu_slope(fused(xhat, k.gain(i), k.offset(i))) : 1.0f;
      const float d = load(dy[i]) * slope;
      dz[i] = d;
      s1 += d;
      s2 += d * xhat;
      s3 += xhat;
    }
    total.dz += s1;
    total.dz_xhat += s2;
    total.xhat += s3;
  }
  return total;
}

// dz and xhat of a whole group of short rows; the sums follow row by row.
template <bool Act, class T>
void slope_flat(const T* __restrict x, const T* __restrict dy, float* __restrict dz,
                float* __restrict xhat, std::int64_t n, float mean, float rstd, Each k) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    xhat[i] = normalised(x[i], mean, rstd, k, i);
    const float slope = Act ? silu_slope(fused(xhat[i], k.gain(i), k.offset(i))) : 1.0f;
    dz[i] = load(dy[i]) * slope;
  }
}

inline Sums sums_of(const float* dz, const float* xhat, std::int64_t n, bool all) {
  if (n < kLanes) {
    float s1 = 0, s2 = 0, s3 = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      s1 += dz[i];
      s2 += dz[i] * xhat[i];
      s3 += xhat[i];
    }
    return {s1, s2, s3};
  }
  return {sum_of(n, [&](std::int64_t i) { return dz[i]; }),
          sum_of(n, [&](std::int64_t i) { return dz[i] * xhat[i]; }),
          all ? sum_of(n, [&](std::int64_t i) { return xhat[i]; }) : 0.0f};
}

template <class T>
void return_flat(const float* xhat, const float* dz, T* dx, std::int64_t n, float rstd, Return r,
                 Each k) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float level = dz[i] * k.gain(i) + r.level;
    store(dx + i, fused(xhat[i], r.tilt, level) * rstd);
  }
}

template <class T>
void return_row(const T* x, const float* dz, T* dx, std::int64_t n, float mean, float rstd,
                Return r, Same k) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float xhat = normalised(x[i], mean, rstd, k, i);
    const float level = dz[i] * k.gain(i) + r.level;
    store(dx + i, fused(xhat, r.tilt, level) * rstd);
  }
}

template <bool Act, class T>
void backward_contiguous(const GroupNormBackward& p, const BackwardScratch& s) {
  const std::int64_t width = p.channels / p.groups, count = width * p.size;
  const int threads = useful_threads(p.n * p.channels * p.size, p.threads);
  const bool flat = spread_out(p);
  const Spread constants(p, flat && alike(p) ? s.constants : nullptr);
  const Gradients out(p, s);
  parallel_for(p.n * p.groups, threads, [&](std::int64_t task) {
    const std::int64_t image = task / p.groups, first = task % p.groups * width;
    const float mean = p.mean[task], rstd = p.rstd[task];
    const T *x = static_cast<const T*>(p.x) + task * count,
            *dy = static_cast<const T*>(p.dy) + task * count;
    T* dx = static_cast<T*>(p.dx) + task * count;
    float *dz = slopes<T>(p, s, Strip{0, p.channels, false}) + task * count, own[3 * kRun],
          xhat[kRun];
    const ChannelSums sums = s.sums.from(task * width);
    Each each = {};
    if (flat) {
      each = constants(image, task % p.groups, own);
      slope_flat<Act>(x, dy, dz, xhat, count, mean, rstd, each);
    }
    for (std::int64_t d = 0; d < width; ++d) {
      const std::int64_t at = d * p.size;
      sums.set(d, flat ? sums_of(dz + at, xhat + at, p.size, p.dadd)
                       : slope_row<Act>(x + at, dy + at, dz + at, p.size, mean, rstd,
                                        Same{gain_of(p, image, first + d)}));
    }
    const Return r = out.join(image, first, rstd,
                              [&](std::int64_t d) { return gain_of(p, image, first + d).gain; });
    if (flat) return return_flat(xhat, dz, dx, count, rstd, r, each);
    for (std::int64_t d = 0; d < width; ++d) {
      const std::int64_t at = d * p.size;
      return_row(x + at, dz + at, dx + at, p.size, mean, rstd, r,
                 Same{gain_of(p, image, first + d)});
    }
  });
  out.finish();
}

KDGEN_END
