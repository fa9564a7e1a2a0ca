// Attention over the pixels of an image: keys and values are packed once a head, then a few
// queries at a time go through scores, softmax and the sum of values.
#include "multiply.h"
#include "steps.h"
#include "tables.h"

KDGEN_BEGIN
namespace engine {
namespace {

template <class T>
class Attention final : public Step {
 public:
  explicit Attention(const Attend& p)
      : p_(p), tokens_(p.y.shape.pixels()), padded_(rounded_up(tokens_, kBlock)) {}

  std::int64_t tasks(const Group& group) const override {
    return group.images * p_.heads * parts(group);
  }

  std::int64_t scratch(std::int64_t) const override {
    return (2 * padded_ * p_.width + kRows * padded_) * std::int64_t{sizeof(T)} +
           kRows * padded_ * 4;
  }

  std::int64_t work() const override { return 2 * tokens_ * tokens_ * p_.heads * p_.width; }

  void run(const Group& group, std::int64_t task, char* scratch) const override {
    const std::int64_t parts = this->parts(group), part = task % parts;
    const std::int64_t n = task / parts / p_.heads, head = task / parts % p_.heads * p_.width;
    float* const scores = reinterpret_cast<float*>(scratch);
    T* const keys = reinterpret_cast<T*>(scores + kRows * padded_);
    T* const values = keys + padded_ * p_.width;
    T* const shares = values + padded_ * p_.width;
    pack_keys(start(group, p_.k, n) + head, stride(p_.k), keys);
    pack_values(start(group, p_.v, n) + head, stride(p_.v), values);
    const T* q = start(group, p_.q, n) + head;
    T* y = group.image<T>(p_.y, n) + head;
    const std::int64_t each = divided_up(tokens_, parts);
    const std::int64_t last = smaller((part + 1) * each, tokens_);
    for (std::int64_t r = part * each; r < last; r += kRows) {
      queries(q + r * stride(p_.q), smaller(kRows, last - r), keys, values, scores, shares,
              y + r * p_.y.shape.channels);
    }
  }

 private:
  static constexpr std::int64_t kUnit = Factor<T>::kUnit;

  std::int64_t parts(const Group& group) const {
    return smaller(divided_up(group.workers, group.images * p_.heads), divided_up(tokens_, kRows));
  }
  static const T* start(const Group& group, const Slice& slice, std::int64_t n) {
    return group.image<const T>(slice.place, n) + slice.first;
  }
  static std::int64_t stride(const Slice& slice) { return slice.place.shape.channels; }

  // Panels (width, tokens), zero behind the last token. A few channels at a time, whose lines of
  // the panel stay in the first-level cache.
  void pack_keys(const T* k, std::int64_t stride, T* keys) const {
    for_panels(0, padded_, [&](std::int64_t first, std::int64_t width) {
      T* panel = keys + first * p_.width;
      for (std::int64_t begin = 0; begin < p_.width; begin += kBlock) {
        for (std::int64_t t = 0; t < width; ++t) {
          const T* from = k + (first + t) * stride + begin;
          T* to = panel + begin * width + t * kUnit;
          for (std::int64_t c = 0; c < kBlock; c += kUnit, to += width * kUnit) {
            for (std::int64_t u = 0; u < kUnit; ++u) {
              to[u] = first + t < tokens_ ? from[c + u] : T{};
            }
          }
        }
      }
    });
  }

  // Panels (tokens, width), zero behind the last token.
  void pack_values(const T* v, std::int64_t stride, T* values) const {
    for_panels(0, p_.width, [&](std::int64_t first, std::int64_t width) {
      T* to = values + first * padded_;
      for (std::int64_t t = 0; t < padded_; t += kUnit) {
        for (std::int64_t u = 0; u < kUnit; ++u) {
          const T* from = v + (t + u) * stride + first;
          for (std::int64_t c = 0; c < width; ++c) {
            to[c * kUnit + u] = t + u < tokens_ ? from[c] : T{};
          }
        }
        to += width * kUnit;
      }
    });
  }

  void queries(const T* q, std::int64_t count, const T* keys, const T* values, float* scores,
               T* shares, T* y) const {
    float whole[kRows];
    products(
        q, stride(p_.q), count, keys, p_.width, padded_,
        [&](std::int64_t r, std::int64_t first, Vec v) { store(scores + r * padded_ + first, v); });
    for (std::int64_t r = 0; r < count; ++r) {
      whole[r] = softmax(scores + r * padded_, shares + r * padded_);
    }
    products(shares, padded_, count, values, padded_, p_.width,
             [&](std::int64_t r, std::int64_t first, Vec v) {
               store(y + r * p_.y.shape.channels + first, v / all(whole[r]));
             });
  }

  // take(row, column, values) of rows (count, k), `stride` apart, times panels of (k, columns).
  template <class Take>
  static void products(const T* rows, std::int64_t stride, std::int64_t count, const T* panels,
                       std::int64_t k, std::int64_t columns, const Take& take) {
    for_panels(0, columns, [&](std::int64_t first, std::int64_t width) {
      with_tile(count, width, [&](auto of_rows, auto vecs) {
        constexpr int R = decltype(of_rows)::value, V = decltype(vecs)::value;
        const T* row[R];
        for (int r = 0; r < R; ++r) row[r] = rows + r * stride;
        Sums<T, R, V> sums = {};
        multiply<T, R, V>(row, k, panels + first * k,
                          reinterpret_cast<const char*>(panels + first * k), sums);
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < V; ++v) take(r, first + v * kWidth, sums.at[r][v]);
        }
      });
    });
  }

  // Shares that are not yet divided by their sum, which is returned; 0 behind the last token.
  float softmax(float* scores, T* shares) const {
    for (std::int64_t t = tokens_; t < padded_; ++t) scores[t] = scores[0];
    Vec most = load(scores);
    for (std::int64_t t = kWidth; t < padded_; t += kWidth) {
      const Vec v = load(scores + t);
      most = v > most ? v : most;
    }
    float top = most[0];
    for (int l = 1; l < kWidth; ++l) top = most[l] > top ? most[l] : top;
    for (std::int64_t t = 0; t < padded_; t += kWidth) {
      const Vec below = (all(top) - load(scores + t)) * all(p_.scale);
      store(scores + t, each(below, [](float v) { return exponential_of_minus(v); }));
    }
    for (std::int64_t t = tokens_; t < padded_; ++t) scores[t] = 0;
    Vec sum = {};
    for (std::int64_t t = 0; t < padded_; t += kWidth) {
      const Vec v = load(scores + t);
      sum += v;
      store(shares + t, v);
    }
    float whole = 0;
    for (int l = 0; l < kWidth; ++l) whole += sum[l];
    return whole;
  }

  Attend p_;
  std::int64_t tokens_, padded_;
};

}  // namespace

Step* attend(const Attend& p) {
  if (p.y.shape.dtype == Dtype::bfloat16) return new Attention<BFloat16>(p);
  return new Attention<float>(p);
}

}  // namespace engine
KDGEN_END
