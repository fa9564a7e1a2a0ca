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

struct ForwardScratch {
  float* constants;       // (groups, 3, channels / groups, size): per-value constants of short rows
  double *mean, *spread;  // (n, blocks, groups)
  float *origin, *total;  // (n, blocks, channels)
  float *mean_of, *add_of, *gain_of, *offset_of;  // (n, channels)
  std::int64_t bytes;

  ForwardScratch(const GroupNormForward& p, char* base) {
    Carver c(base);
    const std::int64_t blocks = p.channels_last ? p.n * Blocks(p).count : 0;
    const std::int64_t each = p.channels_last ? p.n * p.channels : 0;
    constants = p.channels_last ? nullptr : c.take<float>(3 * p.channels * p.size);
    mean = c.take<double>(blocks * p.groups);
    spread = c.take<double>(blocks * p.groups);
    origin = c.take<float>(blocks * p.channels);
    total = c.take<float>(blocks * p.channels);
    mean_of = c.take<float>(each);
    add_of = c.take<float>(each);
    gain_of = c.take<float>(each);
    offset_of = c.take<float>(each);
    bytes = c.used();
  }
};

struct BackwardScratch {
  float* constants;                           // as above
  float* slopes;                              // like x, in float; null when dx itself can hold it
  Sums* sums;                                 // (n, channels)
  float *part_dz, *part_dz_xhat, *part_xhat;  // (n, blocks, channels)
  float *mean_of, *add_of, *rstd_of, *gain_of, *offset_of;  // (n, channels)
  float *level_of, *tilt_of;                                // (n, channels)
  std::int64_t bytes;

  BackwardScratch(const GroupNormBackward& p, char* base) {
    Carver c(base);
    const std::int64_t each = p.n * p.channels, last = p.channels_last ? each : 0;
    const std::int64_t parts = p.channels_last ? each * Blocks(p).count : 0;
    constants = p.channels_last ? nullptr : c.take<float>(3 * p.channels * p.size);
    slopes = p.dtype == Dtype::float32 ? nullptr : c.take<float>(each * p.size);
    sums = c.take<Sums>(each);
    for (float** v : {&part_dz, &part_dz_xhat, &part_xhat}) *v = c.take<float>(parts);
    for (float** v : {&mean_of, &add_of, &rstd_of, &gain_of, &offset_of, &level_of, &tilt_of})
      *v = c.take<float>(last);
    bytes = c.used();
  }
};

KDGEN_END
