// Steps that take every value for itself: sums, and the way in and out.
#include "steps.h"
#include "tables.h"

KDGEN_BEGIN
namespace engine {
namespace {

template <class T>
class Sum final : public Step {
 public:
  explicit Sum(const Combine& p)
      : p_(p), a_(copied(p.a, p.rows)), b_(p.more ? copied(p.b, p.rows) : zeros(4 * p.rows)) {}

  // A task is a line of an image.
  std::int64_t tasks(const Group& group) const override { return group.images * p_.y.shape.height; }
  std::int64_t scratch(std::int64_t) const override { return 0; }

  void run(const Group& group, std::int64_t task, char*) const override {
    const std::int64_t n = task / p_.y.shape.height, row = group.row(n, p_.rows);
    const std::int64_t count = p_.y.shape.width * p_.y.shape.channels;
    const std::int64_t at = task % p_.y.shape.height * count;
    const Vec a = all(a_.as<float>()[row]), b = all(b_.as<float>()[row]);
    const T* x = group.image<const T>(p_.x, n) + at;
    const T* more = p_.more ? group.image<const T>(p_.more, n) + at : nullptr;
    T* y = group.image<T>(p_.y, n) + at;
    for (std::int64_t i = 0; i < count; i += kWidth) {
      Vec v = a * load(x + i);
      if (more) v = b * load(more + i) + v;
      store(y + i, v);
    }
  }

 private:
  Combine p_;
  Pages a_, b_;
};

// Images to a buffer, or back; a task is a line.
template <class T, bool In>
class End final : public Step {
 public:
  explicit End(const Ends& p) : p_(p) {}

  std::int64_t tasks(const Group& group) const override {
    return group.images * p_.place.shape.height;
  }
  std::int64_t scratch(std::int64_t) const override { return 0; }

  void run(const Group& group, std::int64_t task, char*) const override {
    const Shape& shape = p_.place.shape;
    T* ours = reinterpret_cast<T*>(group.at[p_.place.id]) + task * shape.width * shape.channels;
    const std::int64_t line = shape.width * p_.channels;
    for (std::int64_t j = 0; j < shape.width; ++j) {
      for (std::int64_t c = 0; c < (In ? shape.channels : p_.channels); ++c) {
        const std::int64_t at = task * line + j * p_.channels + c;
        T& value = ours[j * shape.channels + c];
        if (In) {
          kdgen::store(&value, c < p_.channels ? group.input[at] : 0.0f);
        } else {
          group.output[at] = kdgen::load(value);
        }
      }
    }
  }

 private:
  Ends p_;
};

}  // namespace

Step* combine(const Combine& p) {
  if (p.x.shape.dtype == Dtype::bfloat16) return new Sum<BFloat16>(p);
  return new Sum<float>(p);
}

Step* input(const Ends& p) {
  if (p.place.shape.dtype == Dtype::bfloat16) return new End<BFloat16, true>(p);
  return new End<float, true>(p);
}

Step* output(const Ends& p) {
  if (p.place.shape.dtype == Dtype::bfloat16) return new End<BFloat16, false>(p);
  return new End<float, false>(p);
}

}  // namespace engine
KDGEN_END
