// Half or double the size by a separable filter, every channel for itself.
#include "steps.h"
#include "tables.h"

KDGEN_BEGIN
namespace engine {
namespace {

constexpr int kMostTaps = 16;

// Which input pixels one output sees, in one direction, and how much of each.
struct Seen {
  int count = 0;
  std::int64_t at[kMostTaps];
  float share[kMostTaps];
};

template <class T>
class Filter final : public Step {
 public:
  explicit Filter(const Resample& p) : p_(p), taps_(copied(p.taps, p.count)) {}

  // A task is a line of an image.
  std::int64_t tasks(const Group& group) const override { return group.images * p_.y.shape.height; }
  std::int64_t scratch(std::int64_t) const override { return 0; }

  void run(const Group& group, std::int64_t task, char*) const override {
    const Shape &from = p_.x.shape, &to = p_.y.shape;
    const std::int64_t n = task / to.height, i = task % to.height;
    const T* x = group.image<const T>(p_.x, n);
    T* y = group.image<T>(p_.y, n) + i * to.width * to.channels;
    const Seen rows = seen(i, from.height);
    for (std::int64_t j = 0; j < to.width; ++j) {
      const Seen columns = seen(j, from.width);
      for (std::int64_t c = 0; c < to.channels; c += kWidth) {
        Vec sum = {};
        for (int a = 0; a < rows.count; ++a) {
          Vec line = {};
          for (int b = 0; b < columns.count; ++b) {
            const std::int64_t at = rows.at[a] * from.width + columns.at[b];
            line = load(x + at * from.channels + c) * all(columns.share[b]) + line;
          }
          sum = line * all(rows.share[a]) + sum;
        }
        store(y + j * to.channels + c, sum);
      }
    }
  }

 private:
  Seen seen(std::int64_t out, std::int64_t size) const {
    Seen seen;
    for (std::int64_t k = 0; k < p_.count; ++k) {
      const std::int64_t at = p_.up ? out + p_.before - k : 2 * out + k - p_.before;
      if (p_.up && (at < 0 || at % 2 != 0)) continue;
      const std::int64_t pixel = p_.up ? at / 2 : at;
      if (pixel < 0 || pixel >= size) continue;
      seen.at[seen.count] = pixel;
      seen.share[seen.count++] = taps_.as<float>()[k] * (p_.up ? 2.0f : 1.0f);
    }
    return seen;
  }

  Resample p_;
  Pages taps_;
};

}  // namespace

Step* resample(const Resample& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return new Filter<BFloat16>(p);
  return new Filter<float>(p);
}

}  // namespace engine
KDGEN_END
