// Convolution as a sum over its taps: rows of pixels, found through pointers, times panels of
// weights. Serves 1×1, strides, any padding, two inputs, and the doubled image, of which each of
// the four outputs around a pixel sees four pixels only.
#include "multiply.h"
#include "steps.h"
#include "tables.h"
#include "walk.h"

KDGEN_BEGIN
namespace engine {
namespace {

constexpr std::int64_t kPixels =
    48;  // of a task's block: their inputs stay in cache for all panels
constexpr int kMostTaps = 64;

// A tap of a pixel (i, j) of its phase reads input (stride·i + down, stride·j + across).
struct Tap {
  std::int64_t down, across;
};

// The outputs (step·i + top, step·j + left) and what they see.
struct Phase {
  std::int64_t top, left, taps;
  Tap tap[kMostTaps];
};

template <class T>
class Direct final : public Step {
 public:
  explicit Direct(const Convolve& p)
      : p_(p),
        doubled_(p.form == Form::up_direct),
        step_(doubled_ ? 2 : 1),
        phases_(step_ * step_),
        rows_(divided_up(p.y.shape.height, step_)),
        columns_(divided_up(p.y.shape.width, step_)),
        bias_(copied(p.bias, p.rows * outputs())),
        outside_(
            zeros(larger(p.x.shape.channels, p.more.shape.channels) * std::int64_t{sizeof(T)})) {
    taps_ = doubled_ ? 4 : p.kernel * p.kernel;
    weights_ = Pages(phases_ * taps_ * depth() * outputs() * std::int64_t{sizeof(T)});
    for (std::int64_t i = 0; i < phases_; ++i) {
      doubled_ ? describe_doubled(phase_[i], i / 2, i % 2) : describe(phase_[i]);
      pack(i);
    }
  }

  std::int64_t tasks(const Group& group) const override {
    const Cut cut = this->cut(group);
    return phases_ * cut.blocks * cut.parts;
  }

  std::int64_t scratch(std::int64_t) const override {
    return kPixels * (kPanel * 4 + segments() * std::int64_t{sizeof(T*)});
  }

  std::int64_t packed() const override { return weights_.bytes(); }
  std::int64_t work() const override { return p_.y.shape.pixels() * taps_ * depth() * outputs(); }

  void run(const Group& group, std::int64_t task, char* scratch) const override {
    const Cut cut = this->cut(group);
    const std::int64_t part = task % cut.parts, block = task / cut.parts % cut.blocks;
    const std::int64_t number = task / cut.parts / cut.blocks;
    const std::int64_t first = block * kPixels;
    const std::int64_t count = smaller(kPixels, group.images * rows_ * columns_ - first);
    float* const sums = reinterpret_cast<float*>(scratch);
    const T** const found = reinterpret_cast<const T**>(sums + kPixels * kPanel);
    find(group, phase_[number], first, count, found);
    std::int64_t panel = 0;
    for_panels(0, outputs(), [&](std::int64_t channel, std::int64_t width) {
      if (panel++ % cut.parts != part) return;
      const T* weights =
          weights_.template as<T>() + (number * outputs() + channel) * taps_ * depth();
      gather(found, count, weights, width, sums);
      Walk at(rows_, columns_, first);
      for (std::int64_t r = 0; r < count; ++r, at.next()) {
        finish(group, phase_[number], at, channel, width, sums + r * width);
      }
    });
  }

 private:
  struct Cut {
    std::int64_t blocks, parts;  // of the pixels, of the panels
  };

  std::int64_t outputs() const { return p_.y.shape.channels; }
  std::int64_t depth() const { return p_.x.shape.channels + p_.more.shape.channels; }
  std::int64_t segments() const { return taps_ * (p_.more ? 2 : 1); }

  // Threads share every block: few blocks would leave the last thread with less than the others,
  // and each would read all weights.
  Cut cut(const Group& group) const {
    const std::int64_t panels = divided_up(outputs(), kPanel);
    return {divided_up(group.images * rows_ * columns_, kPixels), smaller(group.workers, panels)};
  }

  void describe(Phase& phase) const {
    phase.top = phase.left = 0;
    phase.taps = taps_;
    for (std::int64_t t = 0; t < taps_; ++t) {
      phase.tap[t] = {t / p_.kernel - p_.before, t % p_.kernel - p_.before};
    }
  }

  // Output (2i + top) sees doubled rows 2i + top − 1 … 2i + top + 1: the pixels i + top − 1, i +
  // top.
  void describe_doubled(Phase& phase, std::int64_t top, std::int64_t left) const {
    phase.top = top;
    phase.left = left;
    phase.taps = taps_;
    for (std::int64_t t = 0; t < taps_; ++t) phase.tap[t] = {t / 2 + top - 1, t % 2 + left - 1};
  }

  // Pointers (segments, kPixels) to the input of every pixel under every tap, of x and then of
  // more.
  void find(const Group& group, const Phase& phase, std::int64_t first, std::int64_t count,
            const T** found) const {
    for (std::int64_t t = 0; t < taps_; ++t) {
      found_in(group, p_.x, phase.tap[t], first, count, found);
      found += kPixels;
      if (!p_.more) continue;
      found_in(group, p_.more, phase.tap[t], first, count, found);
      found += kPixels;
    }
  }

  void found_in(const Group& group, const Place& place, const Tap& tap, std::int64_t first,
                std::int64_t count, const T** found) const {
    const Shape& shape = place.shape;
    Walk at(rows_, columns_, first);
    for (std::int64_t r = 0; r < count; ++r, at.next()) {
      const T* image = group.image<const T>(place, at.image);
      const std::int64_t y = at.row * p_.stride + tap.down;
      const std::int64_t x = at.column * p_.stride + tap.across;
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      found[r] =
          inside ? image + (y * shape.width + x) * shape.channels : outside_.template as<T>();
    }
  }

  // sums (count, width), tap after tap: one tap's weights stay in cache for all pixels.
  void gather(const T* const* found, std::int64_t count, const T* weights, std::int64_t width,
              float* sums) const {
    for (std::int64_t s = 0; s < segments(); ++s) {
      const std::int64_t k = p_.more && s % 2 ? p_.more.shape.channels : p_.x.shape.channels;
      for (std::int64_t r = 0; r < count; r += kRows) {
        with_tile(smaller(kRows, count - r), width, [&](auto rows, auto vecs) {
          constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
          add<R, V>(found + s * kPixels + r, k, weights, s == 0, sums + r * width);
        });
      }
      weights += k * width;
    }
  }

  template <int R, int V>
  static KDGEN_MEMBER void add(const T* const* found, std::int64_t k, const T* weights, bool fresh,
                               float* to) {
    constexpr int width = V * kWidth;
    Sums<R, V> sums = {};
    if (!fresh) {
      for (int i = 0; i < R; ++i) {
        for (int v = 0; v < V; ++v) sums.at[i][v] = load(to + i * width + v * kWidth);
      }
    }
    multiply<T, R, V>(found, k, weights, reinterpret_cast<const char*>(weights + k * width), sums);
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < V; ++v) store(to + i * width + v * kWidth, sums.at[i][v]);
    }
  }

  void finish(const Group& group, const Phase& phase, const Walk& place, std::int64_t channel,
              std::int64_t width, const float* sums) const {
    const std::int64_t n = place.image;
    const std::int64_t y = place.row * step_ + phase.top;
    const std::int64_t x = place.column * step_ + phase.left;
    if (y >= p_.y.shape.height || x >= p_.y.shape.width) return;
    const std::int64_t at = (y * p_.y.shape.width + x) * outputs() + channel;
    const float* bias = bias_.template as<float>() + group.row(n, p_.rows) * outputs() + channel;
    const T* residual = p_.residual ? group.image<const T>(p_.residual, n) + at : nullptr;
    T* to = group.image<T>(p_.y, n) + at;
    for (std::int64_t c = 0; c < width; c += kWidth) {
      Vec value = load(sums + c) + load(bias + c);
      if (residual) value = value + load(residual + c);
      store(to + c, value * all(p_.scale));
    }
  }

  void pack(std::int64_t number) {
    for_panels(0, outputs(), [&](std::int64_t channel, std::int64_t width) {
      T* panel = weights_.template as<T>() + (number * outputs() + channel) * taps_ * depth();
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
      for (std::int64_t k = 0; k < taps_ * depth(); ++k) {
        for (std::int64_t o = 0; o < width; ++o) {
          kdgen::store(
              panel + place_in_panel<T>(k, o, width),
              static_cast<float>(weight(phase_[number], channel + o, k % depth(), k / depth())));
        }
      }
    });
  }

  // Of one tap; on a doubled image the sum of those that fall on the same pixel.
  double weight(const Phase& phase, std::int64_t o, std::int64_t c, std::int64_t tap) const {
    const float* w = p_.weight + (o * depth() + c) * p_.kernel * p_.kernel;
    if (!doubled_) return w[tap];
    double sum = 0;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        const bool here = (phase.top + i + 1) / 2 == tap / 2 + phase.top &&
                          (phase.left + j + 1) / 2 == tap % 2 + phase.left;
        if (here) sum += w[3 * i + j];
      }
    }
    return sum;
  }

  Convolve p_;
  bool doubled_;
  std::int64_t step_, phases_, rows_, columns_, taps_;
  Phase phase_[4];
  Pages bias_, weights_, outside_;
};

}  // namespace

Step* direct(const Convolve& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return new Direct<BFloat16>(p);
  return new Direct<float>(p);
}

Step* convolve(const Convolve& p) {
  return p.form == Form::direct || p.form == Form::up_direct ? direct(p) : winograd(p);
}

}  // namespace engine
KDGEN_END
