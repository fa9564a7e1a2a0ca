// csrc's group norms, forward and backward, against loops in double.
#include <memory>
#include <vector>

#include "../../csrc/isa.h"
#include "array.h"

namespace sanitize {
namespace {

using Doubles = std::vector<double>;

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// Working memory as a binding gives it: aligned, uninitialised.
class Scratch {
 public:
  explicit Scratch(Int bytes) : room_(new char[static_cast<std::size_t>(bytes) + 64]) {}
  char* aligned() const {
    return room_.get() + (64 - reinterpret_cast<std::uintptr_t>(room_.get()) % 64) % 64;
  }

 private:
  std::unique_ptr<char[]> room_;
};

struct Case {
  Int n, groups, channels, size, own;
  bool last, act, film, added;
  Dtype kind;
  int threads;
  Array x, more, weight, bias, scale, shift, add;

  explicit Case(Random& r)
      : n(r.between(1, 3)),
        groups(r.between(1, 4)),
        channels(groups * r.between(1, 20)),
        size(r.between(1, 90)),
        own(channels),
        last(r.coin()),
        act(r.coin()),
        film(r.coin()),
        added(r.coin()),
        kind(r.dtype()),
        threads(static_cast<int>(r.between(1, 3))) {
    if (last && channels > 1 && r.coin()) own = r.between(1, channels - 1);
    x = Array(kind, n * own * size, r);
    more = Array(kind, n * (channels - own) * size, r);
    weight = Array(Dtype::float32, channels, r);
    bias = Array(Dtype::float32, channels, r);
    for (Array* v : {&scale, &shift, &add}) *v = Array(Dtype::float32, n * channels, r);
  }

  // Where channel c of a place lies, in x or in more.
  Int at(Int image, Int c, Int s) const {
    if (!last) return (image * channels + c) * size + s;
    return c < own ? (image * size + s) * own + c : (image * size + s) * (channels - own) + c - own;
  }
  double input(Int image, Int c, Int s) const {
    const double v = c < own ? x[at(image, c, s)] : more[at(image, c, s)];
    return added ? v + add[image * channels + c] : v;
  }
  double gain(Int image, Int c) const {
    return film ? weight[c] * (1 + scale[image * channels + c]) : weight[c];
  }
  double offset(Int image, Int c) const {
    const Int k = image * channels + c;
    return film ? bias[c] * (1 + scale[k]) + shift[k] : bias[c];
  }
  // A layer's numbers are sums of at most these many values of at most 2 · 3 · (1 + 2).
  double allowed(Dtype stored, double want) const {
    const double values = static_cast<double>(n * size * channels);
    return 1e-5 * (20 + std::sqrt(values) * 20) + unit(stored) * std::fabs(want) * 1.01;
  }
  kdgen::GroupNorm arguments() {
    return {x.data(),
            weight.floats(),
            bias.floats(),
            film ? scale.floats() : nullptr,
            film ? shift.floats() : nullptr,
            added ? add.floats() : nullptr,
            n,
            channels,
            size,
            groups,
            0.1f,  // large: a group of one value has no deviation
            act,
            last,
            true,
            kind,
            threads,
            own < channels ? more.data() : nullptr,
            own};
  }
};

struct Statistics {
  double mean = 0, rstd = 0;
};

Statistics of_group(const Case& k, Int image, Int group) {
  const Int width = k.channels / k.groups;
  double sum = 0, squares = 0;
  for (Int c = group * width; c < (group + 1) * width; ++c) {
    for (Int s = 0; s < k.size; ++s) sum += k.input(image, c, s);
  }
  const double mean = sum / static_cast<double>(width * k.size);
  for (Int c = group * width; c < (group + 1) * width; ++c) {
    for (Int s = 0; s < k.size; ++s) squares += std::pow(k.input(image, c, s) - mean, 2);
  }
  return {mean, 1 / std::sqrt(squares / static_cast<double>(width * k.size) + double{0.1f})};
}

void forward(Case& k, Array& mean, Array& rstd) {
  Array y(k.kind, k.n * k.channels * k.size);
  kdgen::GroupNormForward p;
  static_cast<kdgen::GroupNorm&>(p) = k.arguments();
  p.y = y.data(), p.mean = mean.floats(), p.rstd = rstd.floats();
  const Scratch scratch(kdgen::table().forward_scratch(p));
  kdgen::table().group_norm_silu_forward(p, scratch.aligned());
  for (Int image = 0; image < k.n; ++image) {
    for (Int c = 0; c < k.channels; ++c) {
      const Int group = c / (k.channels / k.groups);
      const Statistics t = of_group(k, image, group);
      expect("mean", mean[image * k.groups + group], t.mean, k.allowed(Dtype::float32, 0));
      expect("rstd", rstd[image * k.groups + group], t.rstd, k.allowed(Dtype::float32, 0));
      for (Int s = 0; s < k.size; ++s) {
        const double xhat = (k.input(image, c, s) - t.mean) * t.rstd;
        const double z = xhat * k.gain(image, c) + k.offset(image, c);
        const double want = k.act ? z * sigmoid(z) : z;
        const Int i = k.last ? (image * k.size + s) * k.channels + c : k.at(image, c, s);
        expect("group_norm_silu", y[i], want, k.allowed(k.kind, want));
      }
    }
  }
}

struct Gradients {
  Array dx, dmore, dweight, dbias, dscale, dshift, dadd;
};

void check_group(const Case& k, const Array& dy, const Gradients& g, Int image, Int group,
                 Doubles& dweight, Doubles& dbias) {
  const Int width = k.channels / k.groups, first = group * width;
  const Statistics t = of_group(k, image, group);
  const auto xhat = [&](Int c, Int s) { return (k.input(image, c, s) - t.mean) * t.rstd; };
  const auto dz = [&](Int c, Int s) {
    const Int i = k.last ? (image * k.size + s) * k.channels + c : k.at(image, c, s);
    const double z = xhat(c, s) * k.gain(image, c) + k.offset(image, c), sigma = sigmoid(z);
    return k.act ? dy[i] * sigma * (1 + z * (1 - sigma)) : dy[i];
  };
  double mean = 0, mean_xhat = 0;  // of the gradient of xhat, and of its product with xhat
  for (Int c = first; c < first + width; ++c) {
    double s1 = 0, s2 = 0;
    for (Int s = 0; s < k.size; ++s) s1 += dz(c, s), s2 += dz(c, s) * xhat(c, s);
    mean += s1 * k.gain(image, c), mean_xhat += s2 * k.gain(image, c);
    const double lift = k.film ? 1 + k.scale[image * k.channels + c] : 1;
    dweight[static_cast<std::size_t>(c)] += s2 * lift;
    dbias[static_cast<std::size_t>(c)] += s1 * lift;
    if (!k.film) continue;
    const double dscale = k.weight[c] * s2 + k.bias[c] * s1;
    expect("dscale", g.dscale[image * k.channels + c], dscale, k.allowed(Dtype::float32, 0));
    expect("dshift", g.dshift[image * k.channels + c], s1, k.allowed(Dtype::float32, 0));
  }
  const double count = static_cast<double>(width * k.size);
  for (Int c = first; c < first + width; ++c) {
    double dadd = 0;
    for (Int s = 0; s < k.size; ++s) {
      const double dxhat = dz(c, s) * k.gain(image, c);
      const double want = t.rstd * (dxhat - mean / count - xhat(c, s) * mean_xhat / count);
      const Array& found = c < k.own ? g.dx : g.dmore;
      expect("dx", found[k.at(image, c, s)], want, k.allowed(k.kind, want));
      dadd += want;
    }
    if (k.added) {
      expect("dadd", g.dadd[image * k.channels + c], dadd, k.allowed(Dtype::float32, 0));
    }
  }
}

void backward(Case& k, Array& mean, Array& rstd, Random& r) {
  const Int all = k.n * k.channels, kept = k.film ? all : 0;
  Array dy(k.kind, all * k.size, r);
  Gradients g = {Array(k.kind, k.x.size()),
                 Array(k.kind, k.more.size()),
                 Array(Dtype::float32, k.channels),
                 Array(Dtype::float32, k.channels),
                 Array(Dtype::float32, kept),
                 Array(Dtype::float32, kept),
                 Array(Dtype::float32, k.added ? all : 0)};
  kdgen::GroupNormBackward p;
  static_cast<kdgen::GroupNorm&>(p) = k.arguments();
  p.dy = dy.data(), p.mean = mean.floats(), p.rstd = rstd.floats();
  p.dx = g.dx.data(), p.dmore = g.dmore.data();
  p.dweight = g.dweight.floats(), p.dbias = g.dbias.floats();
  p.dscale = g.dscale.floats(), p.dshift = g.dshift.floats(), p.dadd = g.dadd.floats();
  const Scratch scratch(kdgen::table().backward_scratch(p));
  kdgen::table().group_norm_silu_backward(p, scratch.aligned());
  Doubles dweight(static_cast<std::size_t>(k.channels)), dbias(dweight.size());
  for (Int image = 0; image < k.n; ++image) {
    for (Int group = 0; group < k.groups; ++group) {
      check_group(k, dy, g, image, group, dweight, dbias);
    }
  }
  for (Int c = 0; c < k.channels; ++c) {
    const std::size_t at = static_cast<std::size_t>(c);
    expect("dweight", g.dweight[c], dweight[at], k.allowed(Dtype::float32, 0));
    expect("dbias", g.dbias[c], dbias[at], k.allowed(Dtype::float32, 0));
  }
}

}  // namespace

void check_norms(Random& random) {
  Case k(random);
  Array mean(Dtype::float32, k.n * k.groups), rstd(Dtype::float32, k.n * k.groups);
  forward(k, mean, rstd);
  backward(k, mean, rstd, random);
}

}  // namespace sanitize
