// Working memory of the group norms, carved out of one allocation.
#pragma once

#include <initializer_list>

#include "args.h"
#include "parallel.h"
#include "target.h"

KDGEN_BEGIN

class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t from = used_;
    used_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + from) : nullptr;
  }

  std::int64_t used() const { return used_; }

 private:
  char* base_;
  std::int64_t used_ = 0;
};

// Channels last: an image is cut into blocks of rows that fit the first-level cache, and few enough
// for sums in float.
struct Blocks {
  std::int64_t rows, count;

  explicit Blocks(const GroupNorm& p)
      : rows(smaller(64, larger(1, 8192 / larger(1, p.channels)))),
        count((p.size + rows - 1) / rows) {}
};

// The channels that one tensor holds: `width` of them from `from` on, in rows of its own.
struct Strip {
  std::int64_t from, width;
  bool more;  // from the second tensor
};

// Calls with the strip of x, and with that of `more` where there is one. Sums are kept for each
// channel, so where the strips meet changes no bit.
template <class Call>
void each_strip(const GroupNorm& p, const Call& call) {
  call(Strip{0, p.own, false});
  if (p.own < p.channels) call(Strip{p.own, p.channels - p.own, true});
}

// Σ dz, Σ dz·xhat and Σ xhat over the places of one channel.
struct Sums {
  double dz, dz_xhat, xhat;
};

// Those of consecutive channels.
struct ChannelSums {
  double *dz, *dz_xhat, *xhat;

  ChannelSums from(std::int64_t at) const { return {dz + at, dz_xhat + at, xhat + at}; }
  void set(std::int64_t c, const Sums& v) const {
    dz[c] = v.dz;
    dz_xhat[c] = v.dz_xhat;
    xhat[c] = v.xhat;
  }
};

// Whether every image has the same constants, which are then laid out once.
inline bool alike(const GroupNorm& p) { return !p.scale && !p.shift && !p.add_per_image; }

// What Gain says, channels last: (n, channels), or (channels) for all images alike.
struct Constants {
  float *add, *gain, *offset;
  std::int64_t step;  // from one image to the next

  Constants(const GroupNorm& p, Carver& c) : step(alike(p) ? 0 : p.channels) {
    const std::int64_t count = p.channels_last ? p.channels * (alike(p) ? 1 : p.n) : 0;
    for (float** v : {&add, &gain, &offset}) *v = c.take<float>(count);
  }
};

struct ForwardScratch {
  float* constants;       // (groups, 3, channels / groups, size): per-value constants of short rows
  double *mean, *spread;  // (n, blocks, groups)
  float *origin, *total;  // (n, blocks, channels)
  float *mean_of, *gain_of;  // (n, channels); the gain is over the standard deviation
  Carver carver;
  Constants of;
  std::int64_t bytes;

  ForwardScratch(const GroupNormForward& p, char* base) : carver(base), of(p, carver) {
    Carver& c = carver;
    const std::int64_t blocks = p.channels_last ? p.n * Blocks(p).count : 0;
    const std::int64_t each = p.channels_last ? p.n * p.channels : 0;
    constants = p.channels_last ? nullptr : c.take<float>(3 * p.channels * p.size);
    mean = c.take<double>(blocks * p.groups);
    spread = c.take<double>(blocks * p.groups);
    origin = c.take<float>(blocks * p.channels);
    total = c.take<float>(blocks * p.channels);
    mean_of = c.take<float>(each);
    gain_of = c.take<float>(each);
    bytes = c.used();
  }
};

struct BackwardScratch {
  float* constants;                           // as above
  float* slopes;                              // like x, in float; null when dx itself can hold it
  ChannelSums sums;                           // (n, channels)
  float *part_dz, *part_dz_xhat, *part_xhat;  // (n, blocks, channels)
  float *mean_of, *rstd_of, *level_of, *tilt_of;  // (n, channels)
  Carver carver;
  Constants of;
  std::int64_t bytes;

  BackwardScratch(const GroupNormBackward& p, char* base) : carver(base), of(p, carver) {
    Carver& c = carver;
    const std::int64_t each = p.n * p.channels, last = p.channels_last ? each : 0;
    const std::int64_t parts = p.channels_last ? each * Blocks(p).count : 0;
    constants = p.channels_last ? nullptr : c.take<float>(3 * p.channels * p.size);
    slopes = p.dtype == Dtype::float32 ? nullptr : c.take<float>(each * p.size);
    for (double** v : {&sums.dz, &sums.dz_xhat, &sums.xhat}) *v = c.take<double>(each);
    for (float** v : {&part_dz, &part_dz_xhat, &part_xhat}) *v = c.take<float>(parts);
    for (float** v : {&mean_of, &rstd_of, &level_of, &tilt_of}) *v = c.take<float>(last);
    bytes = c.used();
  }
};

KDGEN_END
