// The steps and the random numbers of csrc against loops in double.
#include <algorithm>
#include <vector>

#include "../../csrc/isa.h"
#include "array.h"

namespace sanitize {
namespace {

// Images in either layout.
struct Layout {
  Int n, channels, size;
  bool last;

  explicit Layout(Random& r)
      : n(r.between(1, 3)), channels(r.between(1, 37)), size(r.between(1, 70)), last(r.coin()) {}
  Int values() const { return n * channels * size; }
  Int at(Int image, Int c, Int s) const {
    return image * channels * size + (last ? s * channels + c : c * size + s);
  }
};

int threads(Random& r) { return static_cast<int>(r.between(1, 3)); }

// A value's own size, of float32 arithmetic, and of the way it is stored.
double allowed(double terms, Dtype dtype, double want) {
  return 8 * unit(Dtype::float32) * terms + unit(dtype) * std::fabs(want) * 1.01 + 1e-7;
}

double limited(double v, float clip) {
  return clip > 0 ? std::min(std::max(v, -double{clip}), double{clip}) : v;
}

void ddim_update(Random& r) {
  const Layout l(r);
  const Dtype kind = r.dtype();
  Array x_t(kind, l.values(), r), x0(kind, l.values(), r), y(kind, l.values());
  Array a(Dtype::float32, l.n, r), b(Dtype::float32, l.n, r);
  const bool each = r.coin();
  const float clip = r.coin() ? 1.0f : 0.0f;
  kdgen::table().ddim_update({x_t.data(), x0.data(), y.data(), each ? a.floats() : nullptr,
                              each ? b.floats() : nullptr, 0.5f, -0.25f, clip, l.n,
                              l.channels * l.size, kind, threads(r)});
  for (Int i = 0; i < l.values(); ++i) {
    const Int image = i / (l.channels * l.size);
    const double p = (each ? a[image] : 0.5) * x_t[i];
    const double q = (each ? b[image] : -0.25) * limited(x0[i], clip);
    expect("ddim_update", y[i], p + q, allowed(std::fabs(p) + std::fabs(q), kind, p + q));
  }
}

void to_uint8(Random& r) {
  const Layout l(r);
  const Dtype kind = r.dtype();
  Array x(kind, l.values(), r);
  std::vector<std::uint8_t> y(static_cast<std::size_t>(l.values()));
  kdgen::table().to_uint8({{x.data(), nullptr, y.data(), nullptr, nullptr, 1.0f, 0.0f, 0.0f, l.n,
                            l.channels * l.size, kind, threads(r)},
                           l.channels,
                           l.size,
                           l.last});
  for (Int image = 0; image < l.n; ++image) {
    for (Int s = 0; s < l.size; ++s) {
      for (Int c = 0; c < l.channels; ++c) {
        const double want = (limited(x[l.at(image, c, s)], 1.0f) + 1) * 127.5;
        const Int at = (image * l.size + s) * l.channels + c;
        expect("to_uint8", y[static_cast<std::size_t>(at)], want, 0.5001);
      }
    }
  }
}

void bias_residual(Random& r) {
  const Layout l(r);
  const Dtype kind = r.dtype();
  Array x(kind, l.values(), r), residual(kind, l.values(), r), y(kind, l.values());
  Array bias(Dtype::float32, l.channels, r);
  const bool biased = r.coin();
  kdgen::table().bias_residual({x.data(), residual.data(), biased ? bias.floats() : nullptr,
                                y.data(), 0.75f, l.n, l.channels, l.size, l.last, kind,
                                threads(r)});
  Array dx(kind, l.values()), dbias(Dtype::float32, l.channels);
  Array partial(Dtype::float32, l.n * l.channels);
  kdgen::table().bias_residual_backward({x.data(), dx.data(), dbias.floats(), partial.floats(),
                                         0.75f, l.n, l.channels, l.size, l.last, kind, threads(r)});
  for (Int c = 0; c < l.channels; ++c) {
    double sum = 0, terms = 0;
    for (Int image = 0; image < l.n; ++image) {
      for (Int s = 0; s < l.size; ++s) {
        const Int i = l.at(image, c, s);
        const double all = std::fabs(x[i]) + std::fabs(residual[i]) + std::fabs(bias[c]);
        const double want = 0.75 * (x[i] + residual[i] + (biased ? bias[c] : 0));
        expect("bias_residual", y[i], want, allowed(all, kind, want));
        expect("dx", dx[i], 0.75 * x[i], allowed(0, kind, x[i]));
        sum += 0.75 * x[i], terms += std::fabs(x[i]);
      }
    }
    expect("dbias", dbias[c], sum, 16 * allowed(terms, Dtype::float32, sum));
  }
}

void chain_step(Random& r) {
  const Layout l(r);
  const Dtype kind = r.dtype(), raws = r.dtype();
  const Int raw_channels = l.last ? l.channels + r.between(0, 5) : l.channels;
  Array x_t(kind, l.values(), r), raw(raws, l.n * l.size * raw_channels, r), y(kind, l.values());
  Array table(Dtype::float32, 3 * 4, r);
  const Int step = r.between(-1, 4), row = 4 * std::min<Int>(std::max<Int>(step, 0), 2);
  kdgen::table().chain_step({x_t.data(), raw.data(), y.data(), table.floats(), &step, 3, 1.0f, l.n,
                             l.channels, l.size, raw_channels, l.last, false, kind, raws,
                             threads(r)});
  for (Int image = 0; image < l.n; ++image) {
    for (Int c = 0; c < l.channels; ++c) {
      for (Int s = 0; s < l.size; ++s) {
        const Int i = l.at(image, c, s);
        const Int j = l.last ? (image * l.size + s) * raw_channels + c : i;
        const double x0 = limited(table[row] * x_t[i] + table[row + 1] * raw[j], 1.0f);
        const double want = table[row + 2] * x_t[i] + table[row + 3] * x0;
        expect("chain_step", y[i], want, allowed(24, kind, want));
      }
    }
  }
}

void scale_input(Random& r) {
  const Layout l(r);
  const Dtype kind = r.dtype(), answers = r.dtype();
  const Int wide = l.channels + r.between(0, 9);
  Array x(kind, l.values(), r), y(answers, l.n * l.size * wide), c_each(Dtype::float32, l.n, r);
  kdgen::table().scale_input({x.data(), y.data(), c_each.floats(), nullptr, 1, 0.0f, l.n,
                              l.channels, l.size, wide, l.last, kind, answers, threads(r)});
  for (Int image = 0; image < l.n; ++image) {
    for (Int s = 0; s < l.size; ++s) {
      for (Int c = 0; c < wide; ++c) {
        const double want = c < l.channels ? c_each[image] * x[l.at(image, c, s)] : 0.0;
        const double got = y[(image * l.size + s) * wide + c];
        expect("scale_input", got, want, allowed(std::fabs(want), answers, want));
      }
    }
  }
}

// Bits are the same on every instruction set: those of the first call stand for all.
void philox(Random& r) {
  static std::vector<std::int64_t> first;
  const std::vector<Int> index = {0, 7, Int{1} << 40};
  const Int size = 37;
  std::vector<std::int64_t> words(static_cast<std::size_t>(size) * index.size());
  kdgen::table().philox({5u, 1u, index.data(), words.data(), static_cast<Int>(index.size()), size,
                         kdgen::Draw::words, threads(r)});
  if (first.empty()) first = words;
  expect("philox", words == first, 1, 0);
  Array normal(Dtype::float32, size * static_cast<Int>(index.size()));
  kdgen::table().philox({5u, 1u, index.data(), normal.data(), static_cast<Int>(index.size()), size,
                         kdgen::Draw::normal, threads(r)});
  for (Int i = 0; i < normal.size(); ++i) expect("philox", normal[i], 0, 6.7);  // as far as it goes
}

}  // namespace

void check_ops(Random& random) {
  ddim_update(random);
  to_uint8(random);
  bias_residual(random);
  chain_step(random);
  scale_input(random);
  philox(random);
}

}  // namespace sanitize
