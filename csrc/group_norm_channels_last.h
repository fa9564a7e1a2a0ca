// Group norm with channels innermost: one task is a block of rows of one image.
#pragma once

#include "group_norm_parts.h"

KDGEN_BEGIN

// Whole images when there are enough of them to keep the threads busy (their rows then stay in
// cache from pass to pass), else blocks. Both orders compute the same numbers.
template <class Before, class First, class Middle, class Second>
void in_two_passes(const GroupNorm& p, const Before& before, const First& first,
                   const Middle& middle, const Second& second) {
  const std::int64_t blocks = Blocks(p).count;
  const int threads = useful_threads(p.n * p.channels * p.size, p.threads);
  if (p.n >= threads || blocks == 1) {
    parallel_for(p.n, threads, [&](std::int64_t image) {
      before(image);
      for (std::int64_t b = 0; b < blocks; ++b) first(image, b);
      middle(image);
      for (std::int64_t b = 0; b < blocks; ++b) second(image, b);
    });
    return;
  }
  parallel_for(p.n, threads, before);
  parallel_for(p.n * blocks, threads, [&](std::int64_t t) { first(t / blocks, t % blocks); });
  parallel_for(p.n, threads, middle);
  parallel_for(p.n * blocks, threads, [&](std::int64_t t) { second(t / blocks, t % blocks); });
}

template <class T>
void sum_rows(const T* __restrict x, std::int64_t rows, std::int64_t width,
              const float* __restrict origin, const float* __restrict add,
              float* __restrict total) {
  for (std::int64_t c = 0; c < width; ++c) total[c] = 0;
  for (std::int64_t r = 0; r < rows; ++r, x += width) {
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) total[c] += (load(x[c]) + add[c]) - origin[c];
  }
}

template <class T>
void square_rows(const T* __restrict x, std::int64_t rows, std::int64_t width,
                 const float* __restrict mean, const float* __restrict add,
                 float* __restrict total) {
  for (std::int64_t c = 0; c < width; ++c) total[c] = 0;
  for (std::int64_t r = 0; r < rows; ++r, x += width) {
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      const float d = (load(x[c]) + add[c]) - mean[c];
      total[c] += d * d;
    }
  }
}

// A strip's rows of one image, from row `from` on.
template <class T>
const T* rows_of(const GroupNorm& p, const Strip& strip, std::int64_t image, std::int64_t from) {
  const void* base = strip.more ? p.more : p.x;
  return static_cast<const T*>(base) + (image * p.size + from) * strip.width;
}

// Mean and Σ (h - mean)² of every group over one block of rows.
template <class T>
void measure_block(const GroupNormForward& p, const ForwardScratch& s, const Blocks& blocks,
                   std::int64_t image, std::int64_t b) {
  const std::int64_t width = p.channels / p.groups, task = image * blocks.count + b;
  const std::int64_t from = b * blocks.rows, rows = smaller(blocks.rows, p.size - from);
  float *origin = s.origin + task * p.channels, *total = s.total + task * p.channels;
  double *mean = s.mean + task * p.groups, *spread = s.spread + task * p.groups;
  const float* add = s.add_of + image * p.channels;
  each_strip(p, [&](const Strip& strip) {
    const T* x = rows_of<T>(p, strip, image, from);
    float* first = origin + strip.from;
    for (std::int64_t c = 0; c < strip.width; ++c) first[c] = load(x[c]) + add[strip.from + c];
    sum_rows(x, rows, strip.width, first, add + strip.from, total + strip.from);
  });
  const double each = 1.0 / static_cast<double>(rows), share = 1.0 / static_cast<double>(width);
  for (std::int64_t g = 0; g < p.groups; ++g) {
    double m = 0;
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) {
      m += origin[c] + each * total[c];
    }
    mean[g] = m * share;
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) {
      origin[c] = static_cast<float>(mean[g]);
    }
  }
  each_strip(p, [&](const Strip& strip) {
    square_rows(rows_of<T>(p, strip, image, from), rows, strip.width, origin + strip.from,
                add + strip.from, total + strip.from);
  });
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const double rest = mean[g] - static_cast<float>(mean[g]);
    double m2 = 0;
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) m2 += total[c];
    spread[g] = m2 - rest * rest * static_cast<double>(width * rows);
  }
}

// Joins the blocks' statistics (Chan, Golub and LeVeque 1983) and lays out the image's constants.
inline void join_blocks(const GroupNormForward& p, const ForwardScratch& s, const Blocks& blocks,
                        std::int64_t image) {
  const std::int64_t width = p.channels / p.groups;
  for (std::int64_t g = 0; g < p.groups; ++g) {
    double mean = 0, spread = 0, seen = 0;
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      const std::int64_t at = (image * blocks.count + b) * p.groups + g;
      const double more =
          static_cast<double>(width * smaller(blocks.rows, p.size - b * blocks.rows));
      const double gap = s.mean[at] - mean;
      mean += gap * (more / (seen + more));
      spread += s.spread[at] + gap * gap * (seen * more / (seen + more));
      seen += more;
    }
    const double variance = spread / seen;
    const Moments m = moments(mean, variance < 0 ? 0 : variance, p.eps);
    p.mean[image * p.groups + g] = m.mean;
    p.rstd[image * p.groups + g] = m.rstd;
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) {
      const Gain k = gain_of(p, image, c);
      const std::int64_t at = image * p.channels + c;
      s.mean_of[at] = m.mean;
      s.gain_of[at] = k.gain * m.rstd;
      s.offset_of[at] = k.offset;
    }
  }
}

// Rows of y are `stride` long.
template <bool Act, class T>
void apply_rows(const T* __restrict x, T* __restrict y, std::int64_t rows, std::int64_t width,
                std::int64_t stride, const float* __restrict mean, const float* __restrict add,
                const float* __restrict gain, const float* __restrict offset) {
  for (std::int64_t r = 0; r < rows; ++r, x += width, y += stride) {
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      const float z = fused((load(x[c]) + add[c]) - mean[c], gain[c], offset[c]);
      store(y + c, Act ? silu(z) : z);
    }
  }
}

template <bool Act, class T>
void forward_channels_last(const GroupNormForward& p, const ForwardScratch& s) {
  const Blocks blocks(p);
  in_two_passes(
      p,
      [&](std::int64_t image) {
        for (std::int64_t c = 0; c < p.channels; ++c) {
          s.add_of[image * p.channels + c] = gain_of(p, image, c).add;
        }
      },
      [&](std::int64_t image, std::int64_t b) { measure_block<T>(p, s, blocks, image, b); },
      [&](std::int64_t image) { join_blocks(p, s, blocks, image); },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, rows = smaller(blocks.rows, p.size - from);
        T* y = static_cast<T*>(p.y) + (image * p.size + from) * p.channels;
        each_strip(p, [&](const Strip& strip) {
          const std::int64_t c = image * p.channels + strip.from;
          apply_rows<Act>(rows_of<T>(p, strip, image, from), y + strip.from, rows, strip.width,
                          p.channels, s.mean_of + c, s.add_of + c, s.gain_of + c, s.offset_of + c);
        });
      });
}

// ---- backward -----------------------------------------------------------------------------------

inline void lay_out(const GroupNormBackward& p, const BackwardScratch& s, std::int64_t image) {
  const std::int64_t width = p.channels / p.groups;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const std::int64_t at = image * p.channels + c, g = image * p.groups + c / width;
    const Gain k = gain_of(p, image, c);
    s.mean_of[at] = p.mean[g];
    s.rstd_of[at] = p.rstd[g];
    s.add_of[at] = k.add;
    s.gain_of[at] = k.gain;
    s.offset_of[at] = k.offset;
  }
}

// Rows of dy are all channels long; dz is laid out like x. `part` is where the block's sums go.
template <bool Act, class T>
void slope_rows(const T* __restrict x, const T* __restrict dy, float* __restrict dz,
                std::int64_t rows, const GroupNormBackward& p, const BackwardScratch& s,
                const Strip& strip, std::int64_t image, std::int64_t part) {
  const std::int64_t width = strip.width, at = image * p.channels + strip.from;
  const float* __restrict mean = s.mean_of + at, * __restrict add = s.add_of + at;
  const float* __restrict rstd = s.rstd_of + at, * __restrict gain = s.gain_of + at;
  const float* __restrict offset = s.offset_of + at;
  float* __restrict s1 = s.part_dz + part, * __restrict s2 = s.part_dz_xhat + part;
  float* __restrict s3 = s.part_xhat + part;
  for (std::int64_t c = 0; c < width; ++c) s1[c] = s2[c] = s3[c] = 0;
  for (std::int64_t r = 0; r < rows; ++r, x += width, dy += p.channels, dz += width) {
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      const float xhat = ((load(x[c]) + add[c]) - mean[c]) * rstd[c];
      const float slope = Act ? silu_slope(fused(xhat, gain[c], offset[c])) : 1.0f;
      const float d = load(dy[c]) * slope;
      dz[c] = d;
      s1[c] += d;
      s2[c] += d * xhat;
      s3[c] += xhat;
    }
  }
}

inline void join_sums(const GroupNormBackward& p, const BackwardScratch& s, const Gradients& out,
                      std::int64_t blocks, std::int64_t image) {
  const std::int64_t width = p.channels / p.groups, base = image * p.channels;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    Sums v = {0, 0, 0};
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t part = (image * blocks + b) * p.channels + c;
      v.dz += s.part_dz[part];
      v.dz_xhat += s.part_dz_xhat[part];
      v.xhat += s.part_xhat[part];
    }
    s.sums[base + c] = v;
  }
  for (std::int64_t first = 0; first < p.channels; first += width) {
    const Return r = out.join(image, first, s.rstd_of[base + first]);
    for (std::int64_t c = first; c < first + width; ++c) {
      s.level_of[base + c] = r.level;
      s.tilt_of[base + c] = r.tilt;
    }
  }
}

template <class T>
void return_rows(const T* x, const float* dz, T* dx, std::int64_t rows, const Strip& strip,
                 const BackwardScratch& s, std::int64_t at) {
  const std::int64_t width = strip.width;
  const float* __restrict mean = s.mean_of + at, * __restrict add = s.add_of + at;
  const float* __restrict rstd = s.rstd_of + at, * __restrict gain = s.gain_of + at;
  const float* __restrict level = s.level_of + at, * __restrict tilt = s.tilt_of + at;
  for (std::int64_t r = 0; r < rows; ++r, x += width, dz += width, dx += width) {
#pragma omp simd
    for (std::int64_t c = 0; c < width; ++c) {
      const float xhat = ((load(x[c]) + add[c]) - mean[c]) * rstd[c];
      const float own = dz[c] * gain[c] + level[c];
      store(dx + c, fused(xhat, tilt[c], own) * rstd[c]);
    }
  }
}

template <bool Act, class T>
void backward_channels_last(const GroupNormBackward& p, const BackwardScratch& s) {
  const Blocks blocks(p);
  const Gradients out = {p, s};
  const T* dy = static_cast<const T*>(p.dy);
  const auto rows = [&](std::int64_t b) { return smaller(blocks.rows, p.size - b * blocks.rows); };
  in_two_passes(
      p, [&](std::int64_t image) { lay_out(p, s, image); },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, row = image * p.size + from;
        each_strip(p, [&](const Strip& strip) {
          slope_rows<Act>(rows_of<T>(p, strip, image, from), dy + row * p.channels + strip.from,
                          slopes<T>(p, s, strip) + row * strip.width, rows(b), p, s, strip, image,
                          (image * blocks.count + b) * p.channels + strip.from);
        });
      },
      [&](std::int64_t image) { join_sums(p, s, out, blocks.count, image); },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, row = image * p.size + from;
        each_strip(p, [&](const Strip& strip) {
          T* dx = static_cast<T*>(strip.more ? p.dmore : p.dx);
          return_rows(rows_of<T>(p, strip, image, from), slopes<T>(p, s, strip) + row * strip.width,
                      dx + row * strip.width, rows(b), strip, s, image * p.channels + strip.from);
        });
      });
  out.finish();
}

KDGEN_END
