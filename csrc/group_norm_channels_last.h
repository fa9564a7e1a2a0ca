// Group norm with channels innermost: one task is a block of rows of one image.
#pragma once

#include "columns.h"
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

// Σ (x + add) - origin of each channel, the origin its first value.
inline void sum_rows(const float* x, std::int64_t rows, std::int64_t width, const float* add,
                     float* origin, float* total) {
  each_columns(width, [&](std::int64_t c, auto columns) {
    constexpr int W = columns;
    const Values<W> plus = load_columns<W>(add + c), first = load_columns<W>(x + c) + plus;
    Values<W> sum = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      sum += (load_columns<W>(x + r * width + c) + plus) - first;
    }
    store_columns<W>(origin + c, first);
    store_columns<W>(total + c, sum);
  });
}

inline void square_rows(const float* x, std::int64_t rows, std::int64_t width, const float* mean,
                        const float* add, float* total) {
  each_columns(width, [&](std::int64_t c, auto columns) {
    constexpr int W = columns;
    const Values<W> centre = load_columns<W>(mean + c), plus = load_columns<W>(add + c);
    Values<W> sum = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      const Values<W> d = (load_columns<W>(x + r * width + c) + plus) - centre;
      sum += d * d;
    }
    store_columns<W>(total + c, sum);
  });
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
  const float* add = s.of.add + image * s.of.step;
  each_strip(p, [&](const Strip& strip) {
    const Floats<T> floats(rows, strip.width);
    sum_rows(floats.read(rows_of<T>(p, strip, image, from), strip.width), rows, strip.width,
             add + strip.from, origin + strip.from, total + strip.from);
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
    const Floats<T> floats(rows, strip.width);
    square_rows(floats.read(rows_of<T>(p, strip, image, from), strip.width), rows, strip.width,
                origin + strip.from, add + strip.from, total + strip.from);
  });
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const double rest = mean[g] - static_cast<float>(mean[g]);
    double m2 = 0;
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) m2 += total[c];
    spread[g] = m2 - rest * rest * static_cast<double>(width * rows);
  }
}

// Joins the blocks' statistics (Chan, Golub and LeVeque 1983) into the first block's: mean and
// Σ (h - mean)² of every group over the image.
inline void join_blocks(const GroupNormForward& p, const ForwardScratch& s, const Blocks& blocks,
                        std::int64_t image) {
  const std::int64_t width = p.channels / p.groups, first = image * blocks.count * p.groups;
  double *mean = s.mean + first, *spread = s.spread + first;
  double seen = static_cast<double>(width * smaller(blocks.rows, p.size));
  for (std::int64_t b = 1; b < blocks.count; ++b) {
    const double more = static_cast<double>(width * smaller(blocks.rows, p.size - b * blocks.rows));
    const double part = more / (seen + more), both = seen * part;
    for (std::int64_t g = 0; g < p.groups; ++g) {
      const double gap = mean[b * p.groups + g] - mean[g];
      mean[g] += gap * part;
      spread[g] += spread[b * p.groups + g] + gap * gap * both;
    }
    seen += more;
  }
}

// Rounds an image's statistics and lays out what follows from them, channel by channel.
inline void settle(const GroupNormForward& p, const ForwardScratch& s, const Blocks& blocks,
                   std::int64_t image) {
  join_blocks(p, s, blocks, image);
  const std::int64_t width = p.channels / p.groups, first = image * blocks.count * p.groups;
  const double *mean = s.mean + first, *spread = s.spread + first;
  const double share = 1.0 / static_cast<double>(width * p.size);
  float *means = p.mean + image * p.groups, *rstds = p.rstd + image * p.groups;
#pragma omp simd
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const double variance = spread[g] * share;
    const Moments m = moments(mean[g], variance < 0 ? 0 : variance, p.eps);
    means[g] = m.mean;
    rstds[g] = m.rstd;
  }
  const float* gain = s.of.gain + image * s.of.step;
  float *mean_of = s.mean_of + image * p.channels, *gain_of = s.gain_of + image * p.channels;
  for (std::int64_t g = 0; g < p.groups; ++g) {
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) {
      mean_of[c] = means[g];
      gain_of[c] = gain[c] * rstds[g];
    }
  }
}

// Rows of y are `stride` long.
template <bool Act>
void apply_rows(const float* x, float* y, std::int64_t rows, std::int64_t width,
                std::int64_t stride, const float* mean, const float* add, const float* gain,
                const float* offset) {
  each_columns(width, [&](std::int64_t c, auto columns) {
    constexpr int W = columns;
    const Values<W> centre = load_columns<W>(mean + c), plus = load_columns<W>(add + c);
    const Values<W> by = load_columns<W>(gain + c), beside = load_columns<W>(offset + c);
    for (std::int64_t r = 0; r < rows; ++r) {
      const Values<W> h = (load_columns<W>(x + r * width + c) + plus) - centre;
      const Values<W> z = fused_lanes<W>(h, by, beside);
      store_columns<W>(y + r * stride + c,
                       Act ? each_lane<W>(z, [](float v) { return silu(v); }) : z);
    }
  });
}

template <bool Act, class T>
void forward_channels_last(const GroupNormForward& p, const ForwardScratch& s) {
  const Blocks blocks(p);
  if (alike(p)) lay_out(p, s.of, 0);
  in_two_passes(
      p,
      [&](std::int64_t image) {
        if (!alike(p)) lay_out(p, s.of, image);
      },
      [&](std::int64_t image, std::int64_t b) { measure_block<T>(p, s, blocks, image, b); },
      [&](std::int64_t image) { settle(p, s, blocks, image); },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, rows = smaller(blocks.rows, p.size - from);
        each_strip(p, [&](const Strip& strip) {
          T* y = static_cast<T*>(p.y) + (image * p.size + from) * p.channels + strip.from;
          const std::int64_t c = image * p.channels + strip.from;
          const std::int64_t k = image * s.of.step + strip.from;
          const Floats<T> floats(rows, strip.width);
          apply_rows<Act>(floats.read(rows_of<T>(p, strip, image, from), strip.width),
                          floats.place(y), rows, strip.width, floats.stride(p.channels),
                          s.mean_of + c, s.of.add + k, s.gain_of + c, s.of.offset + k);
          floats.write(y, p.channels);
        });
      });
}

// ---- backward -----------------------------------------------------------------------------------

inline void spread_statistics(const GroupNormBackward& p, const BackwardScratch& s,
                              std::int64_t image) {
  const std::int64_t width = p.channels / p.groups;
  float *mean_of = s.mean_of + image * p.channels, *rstd_of = s.rstd_of + image * p.channels;
  for (std::int64_t g = 0; g < p.groups; ++g) {
    for (std::int64_t c = g * width; c < (g + 1) * width; ++c) {
      mean_of[c] = p.mean[image * p.groups + g];
      rstd_of[c] = p.rstd[image * p.groups + g];
    }
  }
}

// Normalises some columns of an image, from channel `c` on.
template <int W>
struct Normalise {
  const Values<W> mean, add, rstd;

  Normalise(const GroupNormBackward& p, const BackwardScratch& s, std::int64_t image,
            std::int64_t c)
      : mean(load_columns<W>(s.mean_of + image * p.channels + c)),
        add(load_columns<W>(s.of.add + image * s.of.step + c)),
        rstd(load_columns<W>(s.rstd_of + image * p.channels + c)) {}

  Values<W> operator()(const float* x) const { return ((load_columns<W>(x) + add) - mean) * rstd; }
};

// Rows walked before the next columns: of a row that is longer than a register, the rest is still
// in the first-level cache then.
constexpr std::int64_t kWalked = 16;

// f(first row, last row, first column, how many as a constant): a few rows at a time.
template <class Call>
inline void each_patch(std::int64_t rows, std::int64_t width, const Call& call) {
  for (std::int64_t from = 0; from < rows; from += kWalked) {
    const std::int64_t end = smaller(rows, from + kWalked);
    each_columns(width, [&](std::int64_t c, auto columns) { call(from, end, c, columns); });
  }
}

// Rows of dy are `stride` long; dz is laid out like x. `part` is where the block's sums go.
template <bool Act>
void slope_rows(const float* x, const float* dy, std::int64_t stride, float* dz, std::int64_t rows,
                const GroupNormBackward& p, const BackwardScratch& s, const Strip& strip,
                std::int64_t image, std::int64_t part) {
  const std::int64_t width = strip.width, at = image * s.of.step + strip.from;
  float *s1_of = s.part_dz + part, *s2_of = s.part_dz_xhat + part, *s3_of = s.part_xhat + part;
  for (std::int64_t c = 0; c < width; ++c) s1_of[c] = s2_of[c] = s3_of[c] = 0;
  each_patch(rows, width, [&](std::int64_t from, std::int64_t end, std::int64_t c, auto columns) {
    constexpr int W = columns;
    const Normalise<W> normalise(p, s, image, strip.from + c);
    const Values<W> gain = load_columns<W>(s.of.gain + at + c);
    const Values<W> offset = load_columns<W>(s.of.offset + at + c);
    Values<W> s1 = load_columns<W>(s1_of + c), s2 = load_columns<W>(s2_of + c);
    Values<W> s3 = load_columns<W>(s3_of + c);
    for (std::int64_t r = from; r < end; ++r) {
      const std::int64_t here = r * width + c;
      const Values<W> xhat = normalise(x + here);
      Values<W> d = load_columns<W>(dy + r * stride + c);
      if (Act) {
        const Values<W> z = fused_lanes<W>(xhat, gain, offset);
        d *= each_lane<W>(z, [](float v) { return silu_slope(v); });
      }
      store_columns<W>(dz + here, d);
      s1 += d;
      s2 += d * xhat;
      s3 += xhat;
    }
    store_columns<W>(s1_of + c, s1);
    store_columns<W>(s2_of + c, s2);
    store_columns<W>(s3_of + c, s3);
  });
}

// Adds up `blocks` rows of sums, each `channels` long.
inline void add_blocks(const float* __restrict part, std::int64_t blocks, std::int64_t channels,
                       double* __restrict sum) {
  for (std::int64_t c = 0; c < channels; ++c) sum[c] = part[c];
  for (std::int64_t b = 1; b < blocks; ++b) {
    for (std::int64_t c = 0; c < channels; ++c) sum[c] += part[b * channels + c];
  }
}

inline void join_sums(const GroupNormBackward& p, const BackwardScratch& s, const Gradients& out,
                      std::int64_t blocks, std::int64_t image) {
  const std::int64_t base = image * p.channels, part = base * blocks;
  const ChannelSums sums = s.sums.from(base);
  add_blocks(s.part_dz + part, blocks, p.channels, sums.dz);
  add_blocks(s.part_dz_xhat + part, blocks, p.channels, sums.dz_xhat);
  add_blocks(s.part_xhat + part, blocks, p.channels, sums.xhat);
  for (std::int64_t first = 0; first < p.channels; first += out.width) {
    const float* gain = s.of.gain + image * s.of.step + first;
    const Return r =
        out.join(image, first, s.rstd_of[base + first], [&](std::int64_t d) { return gain[d]; });
    for (std::int64_t c = first; c < first + out.width; ++c) {
      s.level_of[base + c] = r.level;
      s.tilt_of[base + c] = r.tilt;
    }
  }
}

inline void return_rows(const float* x, const float* dz, float* dx, std::int64_t rows,
                        const Strip& strip, const GroupNormBackward& p, const BackwardScratch& s,
                        std::int64_t image) {
  const std::int64_t width = strip.width;
  each_patch(rows, width, [&](std::int64_t from, std::int64_t end, std::int64_t c, auto columns) {
    constexpr int W = columns;
    const std::int64_t at = image * p.channels + strip.from + c;
    const Normalise<W> normalise(p, s, image, strip.from + c);
    const Values<W> gain = load_columns<W>(s.of.gain + image * s.of.step + strip.from + c);
    const Values<W> level = load_columns<W>(s.level_of + at);
    const Values<W> tilt = load_columns<W>(s.tilt_of + at);
    for (std::int64_t r = from; r < end; ++r) {
      const std::int64_t here = r * width + c;
      const Values<W> own = load_columns<W>(dz + here) * gain + level;
      const Values<W> sum = fused_lanes<W>(normalise(x + here), tilt, own);
      store_columns<W>(dx + here, sum * normalise.rstd);
    }
  });
}

template <bool Act, class T>
void backward_channels_last(const GroupNormBackward& p, const BackwardScratch& s) {
  const Blocks blocks(p);
  const Gradients out(p, s);
  const T* dy = static_cast<const T*>(p.dy);
  const auto rows = [&](std::int64_t b) { return smaller(blocks.rows, p.size - b * blocks.rows); };
  if (alike(p)) lay_out(p, s.of, 0);
  in_two_passes(
      p,
      [&](std::int64_t image) {
        if (!alike(p)) lay_out(p, s.of, image);
        spread_statistics(p, s, image);
      },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, row = image * p.size + from;
        each_strip(p, [&](const Strip& strip) {
          const Floats<T> values(rows(b), strip.width), given(rows(b), strip.width);
          slope_rows<Act>(values.read(rows_of<T>(p, strip, image, from), strip.width),
                          given.read(dy + row * p.channels + strip.from, p.channels),
                          given.stride(p.channels), slopes<T>(p, s, strip) + row * strip.width,
                          rows(b), p, s, strip, image,
                          (image * blocks.count + b) * p.channels + strip.from);
        });
      },
      [&](std::int64_t image) { join_sums(p, s, out, blocks.count, image); },
      [&](std::int64_t image, std::int64_t b) {
        const std::int64_t from = b * blocks.rows, row = image * p.size + from;
        each_strip(p, [&](const Strip& strip) {
          T* dx = static_cast<T*>(strip.more ? p.dmore : p.dx) + row * strip.width;
          const Floats<T> floats(rows(b), strip.width);
          return_rows(floats.read(rows_of<T>(p, strip, image, from), strip.width),
                      slopes<T>(p, s, strip) + row * strip.width, floats.place(dx), rows(b), strip,
                      p, s, image);
          floats.write(dx, strip.width);
        });
      });
  out.finish();
}

KDGEN_END
