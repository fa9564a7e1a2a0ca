// Convolution as a sum over its taps: rows of pixels, found through pointers, times panels of
// weights. Serves 1×1, strides, any padding, two inputs, and the doubled image, of which each of
// the four outputs around a pixel sees four pixels only.
#include "operands.h"
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

template <class Act, class Prod>
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
            zeros(larger(p.x.shape.channels, p.more.shape.channels) * std::int64_t{sizeof(Act)})) {
    taps_ = doubled_ ? 4 : p.kernel * p.kernel;
    weights_ = Pages(phases_ * panels(outputs()) * std::int64_t{sizeof(Prod)});
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
    const std::int64_t rounded = Side::kRounds ? taps_ * (row(p_.x) + row(p_.more)) : 0;
    return kPixels * (kPanel * 4 + 2 * segments() * std::int64_t{sizeof(Act*)} +
                      rounded * std::int64_t{sizeof(Prod)});
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
    const Act** const found = reinterpret_cast<const Act**>(sums + kPixels * kPanel);
    find(group, phase_[number], first, count, found);
    const Prod* const* const rows = as_multiplied(found, count);
    std::int64_t counted = 0;
    for_panels(0, outputs(), [&](std::int64_t channel, std::int64_t width) {
      if (counted++ % cut.parts != part) return;
      gather(rows, count, panel(number, channel), width, sums);
      Walk at(rows_, columns_, first);
      for (std::int64_t r = 0; r < count; ++r, at.next()) {
        finish(group, phase_[number], at, channel, width, sums + r * width);
      }
    });
  }

 private:
  using Side = Operands<Prod>;

  struct Cut {
    std::int64_t blocks, parts;  // of the pixels, of the panels
  };

  std::int64_t outputs() const { return p_.y.shape.channels; }
  std::int64_t depth() const { return p_.x.shape.channels + p_.more.shape.channels; }
  std::int64_t segments() const { return taps_ * (p_.more ? 2 : 1); }
  std::int64_t channels(std::int64_t segment) const {
    return (p_.more && segment % 2 ? p_.more : p_.x).shape.channels;
  }
  static std::int64_t row(const Place& place) {
    return place ? Side::row(place.shape.channels) : 0;
  }
  static std::int64_t panel_of(const Place& place, std::int64_t columns) {
    return place ? Side::panel(place.shape.channels, columns) : 0;
  }
  // Of a phase: all segments' panels for so many columns.
  std::int64_t panels(std::int64_t columns) const {
    return taps_ * (panel_of(p_.x, columns) + panel_of(p_.more, columns));
  }
  Prod* panel(std::int64_t phase, std::int64_t channel) const {
    return weights_.template as<Prod>() + phase * panels(outputs()) + panels(channel);
  }

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
            const Act** found) const {
    for (std::int64_t t = 0; t < taps_; ++t) {
      found_in(group, p_.x, phase.tap[t], first, count, found);
      found += kPixels;
      if (!p_.more) continue;
      found_in(group, p_.more, phase.tap[t], first, count, found);
      found += kPixels;
    }
  }

  void found_in(const Group& group, const Place& place, const Tap& tap, std::int64_t first,
                std::int64_t count, const Act** found) const {
    const Shape& shape = place.shape;
    Walk at(rows_, columns_, first);
    for (std::int64_t r = 0; r < count; ++r, at.next()) {
      const Act* image = group.image<const Act>(place, at.image);
      const std::int64_t y = at.row * p_.stride + tap.down;
      const std::int64_t x = at.column * p_.stride + tap.across;
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      found[r] =
          inside ? image + (y * shape.width + x) * shape.channels : outside_.template as<Act>();
    }
  }

  // The same rows as they are multiplied; those that are rounded lie behind all pointers.
  const Prod* const* as_multiplied(const Act** found, std::int64_t count) const {
    if constexpr (Side::kRounds) {
      const Prod** const rows = reinterpret_cast<const Prod**>(found + segments() * kPixels);
      Prod* to = reinterpret_cast<Prod*>(rows + segments() * kPixels);
      for (std::int64_t s = 0; s < segments(); ++s) {
        for (std::int64_t r = s * kPixels; r < s * kPixels + count; ++r) {
          Side::quantise(found[r], channels(s), to);
          rows[r] = to;
          to += Side::row(channels(s));
        }
      }
      return rows;
    } else {
      return found;
    }
  }

  // sums (count, width), tap after tap: one tap's weights stay in cache for all pixels.
  void gather(const Prod* const* found, std::int64_t count, const Prod* weights, std::int64_t width,
              float* sums) const {
    for (std::int64_t s = 0; s < segments(); ++s) {
      const std::int64_t k = channels(s);
      const Prod* const next = weights + Side::panel(k, width);
      for (std::int64_t r = 0; r < count; r += kRows) {
        with_tile(smaller(kRows, count - r), width, [&](auto rows, auto vecs) {
          constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
          Side::template product<R, V>(found + s * kPixels + r, k, weights,
                                       reinterpret_cast<const char*>(next), s == 0,
                                       sums + r * width);
        });
      }
      weights = next;
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
    const Act* residual = p_.residual ? group.image<const Act>(p_.residual, n) + at : nullptr;
    Act* to = group.image<Act>(p_.y, n) + at;
    for (std::int64_t c = 0; c < width; c += kWidth) {
      Vec value = load(sums + c) + load(bias + c);
      if (residual) value = value + load(residual + c);
      store(to + c, value * all(p_.scale));
    }
  }

  void pack(std::int64_t number) {
    const Pages made(4 * taps_ * depth() * kPanel);
    for_panels(0, outputs(), [&](std::int64_t channel, std::int64_t width) {
      float* dense = made.template as<float>();
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
      for (std::int64_t k = 0; k < taps_ * depth(); ++k) {
        for (std::int64_t o = 0; o < width; ++o) {
          dense[k * width + o] =
              static_cast<float>(weight(phase_[number], channel + o, k % depth(), k / depth()));
        }
      }
      Prod* to = panel(number, channel);
      for (std::int64_t s = 0; s < segments(); ++s) {
        Side::pack(dense, channels(s), width, to);
        dense += channels(s) * width;
        to += Side::panel(channels(s), width);
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
  const bool wide = p.x.shape.dtype == Dtype::float32;
  if (p.product == Product::int8) {
    if (wide) return new Direct<float, Int8>(p);
    return new Direct<BFloat16, Int8>(p);
  }
  if (wide) return new Direct<float, float>(p);
  return new Direct<BFloat16, BFloat16>(p);
}

Step* convolve(const Convolve& p) {
  return p.form == Form::direct || p.form == Form::up_direct ? direct(p) : winograd(p);
}

}  // namespace engine
KDGEN_END
