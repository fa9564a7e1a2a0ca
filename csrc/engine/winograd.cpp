// 3×3 convolution by Winograd's forms: tiles of the input to their points, a product of matrices at
// every point, and back, where bias and residual join.
//
// A task takes a block of tiles, whatever images they are of. Weights stream through once a block,
// the next point's fetched while one point's are in use. For few tiles their points would take
// longer to come from memory than to be made of the taps, in cache.
#include <type_traits>
#include <utility>

#include "forms.h"
#include "operands.h"
#include "steps.h"
#include "tables.h"
#include "taps.h"
#include "walk.h"

KDGEN_BEGIN
namespace engine {
namespace {

// Between two points' matrices, in values: at a distance of a power of two they would share the
// same few places of the first-level cache.
constexpr std::int64_t kApart = 32;
// Of a block. Fewer would read the weights more often than the third-level cache gives them. So it
// is for wide layers too, whose points of 48 tiles are more than a second-level cache holds.
constexpr std::int64_t kTiles = 48;
// Of all images together, for which the points of weights are made of taps. F(4×4) takes two thirds
// of the time then with 4 tiles, four fifths with 8, more with 16; F(2×2) a seventh less with 4,
// more with 12.
constexpr std::int64_t kFew = 8;
// Inputs whose points are made at a time: the 36 matrices of a panel take a third of a second-level
// cache of 1 MiB, and sums are loaded and stored again only every 32 products.
constexpr std::int64_t kDepth = 32;

template <class F, class Act, class Prod>
class Winograd final : public Step {
 public:
  explicit Winograd(const Convolve& p)
      : p_(p),
        down_(divided_up(p.y.shape.height, F::kOutputs)),
        across_(divided_up(p.y.shape.width, F::kOutputs)),
        bias_(copied(p.bias, p.rows * p.y.shape.channels)),
        weights_(kSquare * Side::panel(inputs(), outputs()) * std::int64_t{sizeof(Prod)}),
        outside_(zeros(inputs() * std::int64_t{sizeof(Act)})) {
    Taps<F> taps(p.weight, outputs(), inputs());
    pack(taps);
    if (makes(1)) taps_ = std::move(taps);
  }

  std::int64_t tasks(const Group& group) const override {
    const Cut cut = this->cut(group.images, group.workers);
    return cut.blocks * cut.parts;
  }

  std::int64_t scratch(std::int64_t images) const override {
    const std::int64_t tiles = smaller(kTiles, images * down_ * across_);
    const std::int64_t made = makes(1) ? products(kDepth, kPanel) : 0;
    const std::int64_t tile = Side::kRounds ? inputs() + kApart : 0;
    return all_points(tiles) + (products(tiles, kPanel) + made + tile) * 4 * kSquare;
  }

  std::int64_t packed() const override { return weights_.bytes() + taps_.bytes(); }
  std::int64_t work() const override { return down_ * across_ * kSquare * inputs() * outputs(); }

  void run(const Group& group, std::int64_t task, char* scratch) const override {
    const Cut cut = this->cut(group.images, group.workers);
    const std::int64_t first = task / cut.parts * cut.tiles;
    const std::int64_t count = smaller(cut.tiles, group.images * down_ * across_ - first);
    const Block block = {reinterpret_cast<Prod*>(scratch),
                         reinterpret_cast<float*>(scratch + all_points(cut.tiles)), cut.tiles,
                         count};
    Walk tile(down_, across_, first);
    for (std::int64_t t = 0; t < count; ++t, tile.next()) to_block(group, tile, block, t);
    const std::int64_t part = divided_up(divided_up(outputs(), kPanel), cut.parts) * kPanel;
    const std::int64_t begin = task % cut.parts * part, end = smaller(begin + part, outputs());
    for_panels(begin, end, [&](std::int64_t channel, std::int64_t width) {
      multiply(group.images, block, channel, width);
      Walk back(down_, across_, first);
      for (std::int64_t t = 0; t < count; ++t, back.next()) {
        from_points(group, back, block.made + t * width, products(cut.tiles, width), channel,
                    width);
      }
    });
  }

 private:
  using Side = Operands<Prod>;
  static constexpr int kSquare = F::kPoints * F::kPoints, kUnit = Factor<Prod>::kUnit;

  struct Cut {
    std::int64_t tiles, blocks, parts;  // tiles of a block, blocks, parts of its panels
  };

  // Tiles and their products with a panel: at every point a matrix of each.
  struct Block {
    Prod* at_points;
    float* made;
    std::int64_t tiles, count;  // for which there is room; which there are
  };

  std::int64_t inputs() const { return p_.x.shape.channels; }
  std::int64_t outputs() const { return p_.y.shape.channels; }
  // From one point's matrix to the next, in values.
  std::int64_t points(std::int64_t tiles) const { return tiles * Side::row(inputs()) + kApart; }
  // In bytes.
  std::int64_t all_points(std::int64_t tiles) const {
    return rounded_up(kSquare * points(tiles) * std::int64_t{sizeof(Prod)}, kLine);
  }
  static std::int64_t products(std::int64_t tiles, std::int64_t width) {
    return tiles * width + kApart;
  }

  // Whether the weights' points are made where they are used.
  bool makes(std::int64_t images) const {
    constexpr bool fewer = std::is_same<Prod, float>::value && kTaps < kSquare;
    return fewer && images * down_ * across_ <= kFew;
  }

  Cut cut(std::int64_t images, int workers) const {
    const std::int64_t all = images * down_ * across_;
    std::int64_t blocks = divided_up(all, kTiles);
    if (blocks == 1) return {all, 1, smaller(workers, divided_up(outputs(), kPanel))};
    if (blocks < 4 * workers) blocks = smaller(rounded_up(blocks, workers), all);
    const std::int64_t tiles = divided_up(all, blocks);
    return {tiles, divided_up(all, tiles), 1};
  }

  // The points of tile t of a block, rounded where they are, with a scale each.
  void to_block(const Group& group, const Walk& tile, const Block& block, std::int64_t t) const {
    Prod* const to = block.at_points + t * Side::row(inputs());
    const std::int64_t apart = points(block.tiles);
    if constexpr (Side::kRounds) {
      float* const own = block.made + kSquare * products(block.tiles, kPanel);
      to_points(group, tile, own, inputs() + kApart);
      for (int i = 0; i < kSquare; ++i) {
        Side::quantise(own + i * (inputs() + kApart), inputs(), to + i * apart);
      }
    } else {
      to_points(group, tile, to, apart);
    }
  }

  // One tile's points, `apart` from each other.
  template <class To>
  void to_points(const Group& group, const Walk& tile, To* to, std::int64_t apart) const {
    constexpr int I = F::kInputs, N = F::kPoints;
    const Shape& shape = p_.x.shape;
    const Act* image = group.image<const Act>(p_.x, tile.image);
    const std::int64_t top = tile.row * F::kStride - 1, left = tile.column * F::kStride - 1;
    const Act* pixel[I][I];
    for (int i = 0; i < I; ++i) {
      for (int j = 0; j < I; ++j) {
        const std::int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
        pixel[i][j] =
            inside ? image + (y * shape.width + x) * shape.channels : outside_.template as<Act>();
      }
    }
    for (std::int64_t c = 0; c < shape.channels; c += kWidth) {
      both_ways<N, I>([](const Vec* x, Vec* r) { F::input(x, r); },
                      [&](int i, int j) { return load(pixel[i][j] + c); },
                      [&](int i, int j, Vec v) { store(to + (i * N + j) * apart + c, v); });
    }
  }

  // Both ways give the same bits: points of weights come from one function, and sums are added in
  // the order of inputs.
  void multiply(std::int64_t images, const Block& block, std::int64_t channel,
                std::int64_t width) const {
    if constexpr (std::is_same<Prod, float>::value) {
      if (makes(images)) return multiply_made(block, channel, width);
    }
    multiply_packed(block, channel, width);
  }

  void multiply_packed(const Block& block, std::int64_t channel, std::int64_t width) const {
    const std::int64_t own = Side::panel(inputs(), width), apart = products(block.tiles, width);
    const Prod* panel = this->panel(channel);
    for (int point = 0; point < kSquare; ++point, panel += own) {
      product(block.at_points + point * points(block.tiles), block.count, panel, inputs(), width,
              true, reinterpret_cast<const char*>(panel + own), kLine * inputs() / kUnit,
              block.made + point * apart);
    }
  }

  // Meanwhile the next inputs' taps are fetched, a cache line for every input and point: of panels
  // with 64 channels those are all that there are where the points are 36.
  void multiply_made(const Block& block, std::int64_t channel, std::int64_t width) const {
    const std::int64_t apart = products(block.tiles, width);
    float* const panel = block.made + kSquare * products(block.tiles, kPanel);
    for (std::int64_t k = 0; k < inputs(); k += kDepth) {
      const std::int64_t depth = smaller(kDepth, inputs() - k), own = products(depth, width);
      taps_.points(channel, width, k, depth, panel, own);
      const char* next = reinterpret_cast<const char*>(taps_.at(channel, width, k + depth));
      for (int point = 0; point < kSquare; ++point) {
        product(block.at_points + point * points(block.tiles) + k, block.count, panel + point * own,
                depth, width, k == 0, next + point * kLine * depth, 0, block.made + point * apart);
      }
    }
  }

  // made (rows, width) = a (rows, depth) times one panel, or more by that if not `fresh`. On the
  // way it fetches from `ahead` on, for every few rows `step` bytes further.
  void product(const Prod* a, std::int64_t rows, const Prod* panel, std::int64_t depth,
               std::int64_t width, bool fresh, const char* ahead, std::int64_t step,
               float* made) const {
    for (std::int64_t r = 0; r < rows; r += kRows) {
      with_tile(smaller(kRows, rows - r), width, [&](auto count, auto vecs) {
        constexpr int R = decltype(count)::value, V = decltype(vecs)::value;
        const Prod* row[R];
        for (int i = 0; i < R; ++i) row[i] = a + (r + i) * Side::row(inputs());
        Side::template product<R, V>(row, depth, panel, ahead, fresh, made + r * width);
        ahead += step;
      });
    }
  }

  // One tile of `width` channels of y, from `made`, whose points are `apart`.
  void from_points(const Group& group, const Walk& tile, const float* made, std::int64_t apart,
                   std::int64_t channel, std::int64_t width) const {
    const std::int64_t top = tile.row * F::kOutputs, left = tile.column * F::kOutputs;
    const std::int64_t high = smaller(F::kOutputs, p_.y.shape.height - top);
    const std::int64_t wide = smaller(F::kOutputs, p_.y.shape.width - left);
    const std::int64_t n = tile.image;
    const std::int64_t at = (top * p_.y.shape.width + left) * outputs() + channel;
    const Act* residual = p_.residual ? group.image<const Act>(p_.residual, n) + at : nullptr;
    const float* bias = bias_.template as<float>() + group.row(n, p_.rows) * outputs() + channel;
    Act* y = group.image<Act>(p_.y, n) + at;
    if (high == F::kOutputs && wide == F::kOutputs) {
      finish<true>(made, apart, bias, residual, y, width, high, wide);
    } else {
      finish<false>(made, apart, bias, residual, y, width, high, wide);
    }
  }

  template <bool Whole>
  KDGEN_MEMBER void finish(const float* made, std::int64_t apart, const float* bias,
                           const Act* residual, Act* y, std::int64_t width, std::int64_t high,
                           std::int64_t wide) const {
    constexpr int M = F::kOutputs, N = F::kPoints;
    const std::int64_t line = p_.y.shape.width * outputs();
    const Vec scale = all(p_.scale);
    for (std::int64_t c = 0; c < width; c += kWidth) {
      Vec half[M][N];
#pragma GCC unroll 6
      for (int j = 0; j < N; ++j) {
        Vec m[N], r[M];
#pragma GCC unroll 6
        for (int i = 0; i < N; ++i) m[i] = load(made + (i * N + j) * apart + c);
        F::output(m, r);
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) half[i][j] = r[i];
      }
      const Vec b = load(bias + c);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        if (!Whole && i >= high) break;
        Vec r[M];
        F::output(half[i], r);
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j) {
          if (!Whole && j >= wide) break;
          const std::int64_t at = i * line + j * outputs() + c;
          Vec v = r[j] + b;
          if (residual) v = v + load(residual + at);
          store(y + at, v * scale);
        }
      }
    }
  }

  // Where the points' panels that begin at a channel lie.
  Prod* panel(std::int64_t channel) const {
    return weights_.template as<Prod>() + kSquare * Side::panel(inputs(), channel);
  }

  void pack(const Taps<F>& taps) {
    const Pages made(4 * kSquare * inputs() * kPanel);
    for_panels(0, outputs(), [&](std::int64_t channel, std::int64_t width) {
      const std::int64_t apart = inputs() * width;
      float* const dense = made.template as<float>();
      Prod* const panel = this->panel(channel);
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
      for (std::int64_t k = 0; k < inputs(); ++k) {
        taps.points(channel, width, k, 1, dense + k * width, apart);
      }
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
      for (int i = 0; i < kSquare; ++i) {
        Side::pack(dense + i * apart, inputs(), width, panel + i * Side::panel(inputs(), width));
      }
    });
  }

  Convolve p_;
  std::int64_t down_, across_;
  Pages bias_, weights_, outside_;
  Taps<F> taps_;  // where one image has few tiles
};

template <class F, class Act>
Step* of_products(const Convolve& p) {
  // Not of F(4×4), whose transforms would enlarge the rounding too much.
  if constexpr (F::kPoints < 6) {
    if (p.product == Product::int8) return new Winograd<F, Act, Int8>(p);
  }
  if constexpr (std::is_same<Act, float>::value) {
    if (p.product == Product::float32) return new Winograd<F, float, float>(p);
  }
  return new Winograd<F, Act, BFloat16>(p);
}

template <class F>
Step* of_types(const Convolve& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return of_products<F, BFloat16>(p);
  return of_products<F, float>(p);
}

}  // namespace

Step* winograd(const Convolve& p) {
  switch (p.form) {
    case Form::winograd2:
      return of_types<Two>(p);
    case Form::winograd4:
      return of_types<Four>(p);
    default:
      return of_types<Doubled>(p);
  }
}

}  // namespace engine
KDGEN_END
