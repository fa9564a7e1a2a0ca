// Group norm with SiLU, of one or two inputs: first every channel's moments, then all at once.
#include "steps.h"
#include "tables.h"

KDGEN_BEGIN
namespace engine {
namespace {

constexpr std::int64_t kChannels = 64;  // of a task of moments
constexpr std::int64_t kPixels = 64;    // of a task of normalising, where threads share an image
constexpr std::int64_t kRun = 16;       // pixels that stay in the first cache between two passes

KDGEN_INLINE double squared(double v) { return v * v; }

template <class T>
class ChannelMoments final : public Step {
 public:
  explicit ChannelMoments(const Moments& p) : p_(p) {}

  std::int64_t tasks(const Group& group) const override { return group.images * blocks(); }
  std::int64_t scratch(std::int64_t) const override { return 0; }

  void run(const Group& group, std::int64_t task, char*) const override {
    const std::int64_t n = task / blocks(), first = task % blocks() * kChannels;
    const std::int64_t last = smaller(first + kChannels, channels());
    std::int64_t c = first;
    for (; last - c >= 4 * kWidth; c += 4 * kWidth) of_channels<4>(group, n, c);
    for (; c < last; c += kWidth) of_channels<1>(group, n, c);
  }

 private:
  std::int64_t channels() const { return p_.x.shape.channels; }
  std::int64_t blocks() const { return divided_up(channels(), kChannels); }

  template <int V>
  void of_channels(const Group& group, std::int64_t n, std::int64_t c) const {
    const T* x = group.image<const T>(p_.x, n) + c;
    const std::int64_t pixels = p_.x.shape.pixels();
    Vec mean[V] = {}, square[V] = {};
    for (std::int64_t first = 0; first < pixels; first += kRun) {
      const std::int64_t count = smaller(kRun, pixels - first);
      add_run(x, count, first, mean, square);
      x += count * channels();
    }
    float* y = group.image<float>(p_.y, n) + c;
    for (int v = 0; v < V; ++v) {
      store(y + v * kWidth, mean[v]);
      store(y + channels() + v * kWidth, square[v]);
    }
  }

  // A run's own mean and deviations from it, joined to those of the `before` pixels so far (Chan,
  // Golub and LeVeque 1983): nothing cancels, whatever the mean and whichever pixel stands out.
  template <int V>
  KDGEN_MEMBER void add_run(const T* x, std::int64_t count, std::int64_t before, Vec (&mean)[V],
                            Vec (&square)[V]) const {
    Vec own[V] = {}, apart[V] = {};
    for (std::int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) own[v] += load(x + i * channels() + v * kWidth);
    }
    for (int v = 0; v < V; ++v) own[v] *= all(1.0f / static_cast<float>(count));
    for (std::int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec d = load(x + i * channels() + v * kWidth) - own[v];
        apart[v] = d * d + apart[v];
      }
    }
    const float share = static_cast<float>(count) / static_cast<float>(before + count);
    const Vec weight = all(share * static_cast<float>(before));
    for (int v = 0; v < V; ++v) {
      const Vec step = own[v] - mean[v];
      square[v] += step * step * weight + apart[v];
      mean[v] = step * all(share) + mean[v];
    }
  }

  Moments p_;
};

template <class T>
class GroupNormalise final : public Step {
 public:
  explicit GroupNormalise(const Normalise& p)
      : p_(p),
        gain_(copied(p.gain, p.rows * p.y.shape.channels)),
        offset_(copied(p.offset, p.rows * p.y.shape.channels)) {
    quieten(gain_);
    quieten(offset_);
  }

  std::int64_t tasks(const Group& group) const override { return group.images * parts(group); }
  std::int64_t scratch(std::int64_t) const override { return 4 * 4 * channels(); }

  void run(const Group& group, std::int64_t task, char* scratch) const override {
    const std::int64_t parts = this->parts(group), n = task / parts;
    const std::int64_t pixels = p_.x.shape.pixels(), each = divided_up(pixels, parts);
    const std::int64_t first = task % parts * each, last = smaller(first + each, pixels);
    const Room room(reinterpret_cast<float*>(scratch), channels());
    combine_moments(group, n, room);
    apply(group, n, p_.x, 0, room, first, last);
    if (p_.more) apply(group, n, p_.more, p_.x.shape.channels, room, first, last);
  }

 private:
  // One number a channel.
  struct Room {
    float *factor, *term, *mean, *square;
    Room(float* at, std::int64_t channels)
        : factor(at), term(at + channels), mean(term + channels), square(mean + channels) {}
  };

  std::int64_t channels() const { return p_.y.shape.channels; }
  std::int64_t parts(const Group& group) const {
    return group.workers == 1 ? 1 : divided_up(p_.x.shape.pixels(), kPixels);
  }

  // 0 for the channels that mean nothing: so is what comes of them.
  void quieten(const Pages& table) const {
    const std::int64_t second = p_.x.shape.channels;
    for (std::int64_t row = 0; row < p_.rows; ++row) {
      float* values = table.as<float>() + row * channels();
      for (std::int64_t c = p_.own; c < second; ++c) values[c] = 0;
      for (std::int64_t c = second + p_.others; c < channels(); ++c) values[c] = 0;
    }
  }

  // y = x * factor + term, for every channel that means something; 0 for the others.
  void combine_moments(const Group& group, std::int64_t n, const Room& room) const {
    const std::int64_t row = group.row(n, p_.rows) * channels();
    const float *gain = gain_.as<float>() + row, *offset = offset_.as<float>() + row;
    moments(group, n, room);
    for (std::int64_t c = 0; c < channels(); ++c) room.factor[c] = room.term[c] = 0;
    const std::int64_t size = (p_.own + p_.others) / p_.groups;
    for (std::int64_t first = 0; first < p_.own + p_.others; first += size) {
      of_group(room, first, first + size);
    }
    for (std::int64_t c = 0; c < channels(); c += kWidth) {
      const Vec factor = load(gain + c) * load(room.factor + c);
      store(room.term + c, load(offset + c) - load(room.term + c) * factor);
      store(room.factor + c, factor);
    }
  }

  // The group's 1/deviation to `factor`, its mean to `term`.
  void of_group(const Room& room, std::int64_t first, std::int64_t last) const {
    const double pixels = static_cast<double>(p_.x.shape.pixels());
    const double each = 1 / static_cast<double>(last - first);
    double mean = 0, spread = 0;
    for (std::int64_t c = first; c < last; ++c) mean += room.mean[c];
    mean *= each;
    for (std::int64_t c = first; c < last; ++c) {
      spread += room.square[c] + pixels * squared(room.mean[c] - mean);
    }
    const double variance = spread * each / pixels;
    const double rstd = 1 / __builtin_sqrt(variance + static_cast<double>(p_.eps));
    for (std::int64_t c = first; c < last; ++c) {
      const std::int64_t at = c < p_.own ? c : p_.x.shape.channels + c - p_.own;
      room.factor[at] = static_cast<float>(rstd);
      room.term[at] = static_cast<float>(mean);
    }
  }

  // Of the channels that mean something, side by side: means, and squared deviations.
  void moments(const Group& group, std::int64_t n, const Room& room) const {
    take(group.image<const float>(p_.x_moments, n), p_.x.shape.channels, p_.own, room, 0);
    if (!p_.more) return;
    take(group.image<const float>(p_.more_moments, n), p_.more.shape.channels, p_.others, room,
         p_.own);
  }

  static void take(const float* from, std::int64_t apart, std::int64_t count, const Room& room,
                   std::int64_t at) {
    for (std::int64_t c = 0; c < count; ++c) {
      room.mean[at + c] = from[c];
      room.square[at + c] = from[apart + c];
    }
  }

  void apply(const Group& group, std::int64_t n, const Place& place, std::int64_t at,
             const Room& room, std::int64_t first, std::int64_t last) const {
    const std::int64_t count = place.shape.channels;
    for (std::int64_t i = first; i < last; ++i) {
      const T* x = group.image<const T>(place, n) + i * count;
      T* y = group.image<T>(p_.y, n) + i * channels() + at;
      if (p_.act) {
        line(x, room.factor + at, room.term + at, y, count, [](Vec v) { return silu(v); });
      } else {
        line(x, room.factor + at, room.term + at, y, count, [](Vec v) { return v; });
      }
    }
  }

  template <class Act>
  static KDGEN_MEMBER void line(const T* x, const float* factor, const float* term, T* y,
                                std::int64_t count, const Act& act) {
    for (std::int64_t c = 0; c < count; c += kWidth) {
      store(y + c, act(load(x + c) * load(factor + c) + load(term + c)));
    }
  }

  Normalise p_;
  Pages gain_, offset_;
};

}  // namespace

Step* moments(const Moments& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return new ChannelMoments<BFloat16>(p);
  return new ChannelMoments<float>(p);
}

Step* normalise(const Normalise& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return new GroupNormalise<BFloat16>(p);
  return new GroupNormalise<float>(p);
}

}  // namespace engine
KDGEN_END
