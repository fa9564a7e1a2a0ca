// Random programs of the engine against loops in double.
#include <algorithm>
#include <vector>

#include "../../csrc/engine/program.h"
#include "../../csrc/isa.h"
#include "array.h"

namespace sanitize {
namespace {

using namespace kdgen::engine;
using Doubles = std::vector<double>;

// A buffer and what should be in it, (n, height, width, channels).
struct Known {
  int id;
  Shape shape;
  Doubles values;

  double at(Int image, Int i, Int j, Int c) const {
    if (i < 0 || i >= shape.height || j < 0 || j >= shape.width) return 0;
    return values[static_cast<std::size_t>(
        ((image * shape.height + i) * shape.width + j) * shape.channels + c)];
  }
};

// A program while it is made, with two or three steps between its input and its output.
class Net {
 public:
  explicit Net(Random& r)
      : r_(r),
        n_(r.between(0, 4)),
        rows_(r.between(1, 3)),
        dtype_(r.coin() ? Dtype::float32 : Dtype::bfloat16),
        coarse_(dtype_ == Dtype::bfloat16),
        program_(kdgen::engine_of(""), r.coin()) {
    for (Int k = 0; k < n_; ++k)
      rows_of_.push_back(static_cast<std::int32_t>(r.between(0, rows_ - 1)));
  }

  void run() {
    input();
    for (Int steps = r_.between(1, 3); steps > 0; --steps) add_step();
    const Known& last = known_.back();
    const Int channels = r_.between(1, last.shape.channels), pixels = last.shape.pixels();
    program_.output({place(last), channels});
    Array out(Dtype::float32, n_ * pixels * channels);
    const int threads = static_cast<int>(r_.between(1, 3));
    if (program_.workspace(n_, threads) < 0) throw std::runtime_error("workspace is negative");
    for (int again = 0; again < 2; ++again) run_once(out, threads);
    if (!fails_) check(last, out, channels);
  }

 private:
  struct Stopped {};

  template <class T>
  static void halve(void* from, void* to, Int given, Int wanted) {
    for (Int i = 0; i < wanted; ++i) {
      kdgen::store(static_cast<T*>(to) + i, kdgen::load(static_cast<T*>(from)[i % given]) / 2);
    }
  }

  void run_once(Array& out, int threads) {
    bool stopped = false;
    try {
      program_.run(images_.floats(), rows_ > 1 ? rows_of_.data() : nullptr, out.floats(), n_,
                   threads);
    } catch (const Stopped&) {
      stopped = true;
    }
    if (stopped != fails_) throw std::runtime_error(said_ + ": a call failed and the run did not");
  }

  void check(const Known& last, const Array& out, Int channels) const {
    double most = 0;
    for (double v : last.values) most = std::max(most, std::fabs(v));
    // Of three steps, each of which may enlarge the error of the one before it.
    const double allowed = (coarse_ ? 0.2 : 1e-4) * (1 + most);
    for (Int i = 0; i < out.size(); ++i) {
      const std::size_t at =
          static_cast<std::size_t>(i / channels * last.shape.channels + i % channels);
      expect(said_, out[i], last.values[at], allowed);
    }
  }

  Place place(const Known& k) const { return {k.id, k.shape}; }
  Int row(Int image) const { return rows_ > 1 ? rows_of_[static_cast<std::size_t>(image)] : 0; }
  const Known& any() { return known_[static_cast<std::size_t>(pick(known_.size()))]; }
  Int pick(std::size_t count) { return r_.between(0, static_cast<Int>(count) - 1); }

  // Another buffer like this one, but for its channels when these may differ; none at times.
  const Known* other(const Shape& like, bool any_channels) {
    std::vector<const Known*> found = {nullptr};
    for (const Known& k : known_) {
      if (k.shape.height == like.height && k.shape.width == like.width &&
          (any_channels || k.shape.channels == like.channels)) {
        found.push_back(&k);
      }
    }
    return found[static_cast<std::size_t>(pick(found.size()))];
  }

  Known fresh(Int height, Int width, Int channels) {
    const Shape shape = {height, width, channels, dtype_};
    return {program_.buffer(shape), shape, Doubles(static_cast<std::size_t>(n_ * shape.values()))};
  }

  template <class Value>
  void fill(Known& y, const Value& value) {
    std::size_t at = 0;
    for (Int image = 0; image < n_; ++image) {
      for (Int i = 0; i < y.shape.height; ++i) {
        for (Int j = 0; j < y.shape.width; ++j) {
          for (Int c = 0; c < y.shape.channels; ++c) y.values[at++] = value(image, i, j, c);
        }
      }
    }
    known_.push_back(std::move(y));
  }

  void input() {
    const Int height = r_.between(1, 9), width = r_.between(1, 9), channels = r_.between(1, 40);
    Known y = fresh(height, width, (channels + 15) / 16 * 16);
    images_ = Array(Dtype::float32, n_ * height * width * channels, r_);
    program_.input({place(y), channels});
    fill(y, [&](Int image, Int i, Int j, Int c) {
      return c < channels ? images_[((image * height + i) * width + j) * channels + c] : 0.0;
    });
  }

  void add_step() {
    switch (r_.between(0, 6)) {
      case 0:
      case 1:
        return convolve();
      case 2:
        return normalise();
      case 3:
        return attend();
      case 4:
        return resample();
      case 5:
        return call();
      default:
        return combine();
    }
  }

  void convolve() {
    const Known x = any();
    const Form form = r_.one_of({Form::direct, Form::direct, Form::winograd2, Form::winograd4,
                                 Form::up_direct, Form::up_winograd});
    const bool direct = form == Form::direct, transformed = !direct && form != Form::up_direct;
    const Int times = form == Form::up_direct || form == Form::up_winograd ? 2 : 1;
    const Int kernel = direct ? r_.between(1, 5) : 3, stride = direct ? r_.between(1, 2) : 1;
    const Int before = direct ? r_.between(0, 2) : 1;
    const Known* found = direct ? other(x.shape, true) : nullptr;
    const Known more = found ? *found : Known{-1, {0, 0, 0, dtype_}, {}};
    Known y = fresh((times * x.shape.height + stride - 1) / stride,
                    (times * x.shape.width + stride - 1) / stride, 16 * r_.between(1, 5));
    found = other(y.shape, false);
    const Known residual = found ? *found : Known{-1, {0, 0, 0, dtype_}, {}};
    const Int inputs = x.shape.channels + more.shape.channels, outputs = y.shape.channels;
    Array weight(Dtype::float32, outputs * inputs * kernel * kernel, r_);
    Array bias(Dtype::float32, rows_ * outputs, r_);
    const double size = 1 / std::sqrt(static_cast<double>(inputs * kernel * kernel));
    for (Int i = 0; i < weight.size(); ++i) weight.set(i, weight[i] * size);
    const Product product = this->product(form != Form::winograd4, transformed);
    coarse_ = coarse_ || product != Product::float32;
    said_ += " convolve" + std::to_string(static_cast<int>(form));
    program_.convolve("convolve",
                      {place(x), place(more), place(residual), place(y), weight.floats(),
                       bias.floats(), rows_, kernel, stride, before, form, product, 0.75f});
    fill(y, [&](Int image, Int i, Int j, Int o) {
      double sum = bias[row(image) * outputs + o];
      if (residual.id >= 0) sum += residual.at(image, i, j, o);
      for (Int c = 0; c < inputs; ++c) {
        const Known& from = c < x.shape.channels ? x : more;
        const Int channel = c < x.shape.channels ? c : c - x.shape.channels;
        for (Int k = 0; k < kernel * kernel; ++k) {
          const Int down = stride * i + k / kernel - before,
                    across = stride * j + k % kernel - before;
          if (down < 0 || across < 0) continue;
          sum += weight[(o * inputs + c) * kernel * kernel + k] *
                 from.at(image, down / times, across / times, channel);
        }
      }
      return 0.75 * sum;
    });
  }

  Product product(bool in_bytes, bool mixed) {
    if (in_bytes && r_.between(0, 2) == 0) return Product::int8;
    const bool pairs = dtype_ == Dtype::bfloat16 || (mixed && r_.coin());
    return pairs ? Product::bfloat16 : Product::float32;
  }

  void normalise() {
    const Known x = any();
    const Known* found = other(x.shape, true);
    const Known more = found ? *found : Known{-1, {0, 0, 0, dtype_}, {}};
    Known y = fresh(x.shape.height, x.shape.width, x.shape.channels + more.shape.channels);
    const Int own = r_.between(1, x.shape.channels), others = r_.between(0, more.shape.channels);
    Int groups = r_.between(1, 8);
    while ((own + others) % groups != 0) --groups;
    const Int channels = y.shape.channels, width = (own + others) / groups;
    Array gain(Dtype::float32, rows_ * channels, r_), offset(Dtype::float32, rows_ * channels, r_);
    const bool act = r_.coin();
    said_ += " normalise";
    // A large eps: a group that hardly varies must not enlarge what was rounded before.
    program_.normalise("normalise", {place(x),
                                     place(more),
                                     place(y),
                                     {},
                                     {},
                                     gain.floats(),
                                     offset.floats(),
                                     rows_,
                                     groups,
                                     own,
                                     others,
                                     0.5f,
                                     act});
    const auto value = [&](Int image, Int i, Int j, Int c) {
      return c < own ? x.at(image, i, j, c) : more.at(image, i, j, c - own);
    };
    Doubles means(static_cast<std::size_t>(n_ * groups)), rstds(means.size());
    for (Int g = 0; g < n_ * groups; ++g) {
      double sum = 0, squares = 0;
      const Int pixels = x.shape.pixels();
      for (Int k = 0; k < width * pixels; ++k) {
        const Int p = k % pixels;
        const double v = value(g / groups, p / x.shape.width, p % x.shape.width,
                               g % groups * width + k / pixels);
        sum += v, squares += v * v;
      }
      const double count = static_cast<double>(width * pixels), mean = sum / count;
      means[static_cast<std::size_t>(g)] = mean;
      rstds[static_cast<std::size_t>(g)] = 1 / std::sqrt(squares / count - mean * mean + 0.5);
    }
    fill(y, [&](Int image, Int i, Int j, Int c) {
      const Int second = c - x.shape.channels;
      if (second < 0 ? c >= own : second >= others) return 0.0;
      const Int of = second < 0 ? c : own + second, at = row(image) * channels + c;
      const std::size_t group = static_cast<std::size_t>(image * groups + of / width);
      const double z =
          (value(image, i, j, of) - means[group]) * rstds[group] * gain[at] + offset[at];
      return act ? z / (1 + std::exp(-z)) : z;
    });
  }

  void attend() {
    const Known q = any();
    const Known* found = other(q.shape, true);
    const Known k = found ? *found : q;
    const Int blocks = std::min(q.shape.channels, k.shape.channels) / 16;
    const Int heads = r_.between(1, std::min<Int>(blocks, 3));
    const Int width = 16 * r_.between(1, blocks / heads), all = heads * width;
    const auto from = [&](const Known& x) {
      return 16 * r_.between(0, (x.shape.channels - all) / 16);
    };
    const Int q_at = from(q), k_at = from(k), v_at = from(k);
    Known y = fresh(q.shape.height, q.shape.width, all);
    const float scale = 0.25f / static_cast<float>(std::sqrt(static_cast<double>(width)));
    said_ += " attend";
    program_.attend(
        "attend",
        {{place(q), q_at}, {place(k), k_at}, {place(k), v_at}, place(y), heads, width, scale});
    const Int across = q.shape.width, pixels = q.shape.pixels();
    fill(y, [&](Int image, Int i, Int j, Int c) {
      const Int head = c / width * width;
      Doubles scores;
      for (Int p = 0; p < pixels; ++p) {
        double sum = 0;
        for (Int w = 0; w < width; ++w) {
          sum += q.at(image, i, j, q_at + head + w) *
                 k.at(image, p / across, p % across, k_at + head + w);
        }
        scores.push_back(sum * double{scale});
      }
      const double most = *std::max_element(scores.begin(), scores.end());
      double total = 0, sum = 0;
      for (Int p = 0; p < pixels; ++p) {
        const double weight = std::exp(scores[static_cast<std::size_t>(p)] - most);
        total += weight;
        sum += weight * k.at(image, p / across, p % across, v_at + c);
      }
      return sum / total;
    });
  }

  void resample() {
    const Known x = any();
    const bool up = r_.coin();
    Known y = fresh(up ? 2 * x.shape.height : (x.shape.height + 1) / 2,
                    up ? 2 * x.shape.width : (x.shape.width + 1) / 2, x.shape.channels);
    const Int count = r_.between(1, 6), before = r_.between(0, 3);
    Array taps(Dtype::float32, count, r_);
    for (Int k = 0; k < count; ++k) taps.set(k, taps[k] / 4);
    said_ += " resample";
    program_.resample("resample", {place(x), place(y), taps.floats(), count, before, up});
    // The pixel that tap k of answer i takes, -1 for none, which lies outside.
    const auto taken = [&](Int i, Int k) {
      if (!up) return 2 * i + k - before;
      const Int twice = i + before - k;
      return twice < 0 || twice % 2 != 0 ? Int{-1} : twice / 2;
    };
    const double factor = up ? 4 : 1;
    fill(y, [&](Int image, Int i, Int j, Int c) {
      double sum = 0;
      for (Int a = 0; a < count; ++a) {
        for (Int b = 0; b < count; ++b) {
          sum += taps[a] * taps[b] * x.at(image, taken(i, a), taken(j, b), c);
        }
      }
      return factor * sum;
    });
  }

  // Of somebody outside, who may fail.
  void call() {
    const Known x = any();
    Known y = fresh(r_.between(1, 9), r_.between(1, 9), 16 * r_.between(1, 3));
    const Int given = x.shape.values(), wanted = y.shape.values();
    const bool wide = dtype_ == Dtype::float32, fails = r_.between(0, 7) == 0;
    fails_ = fails_ || (fails && n_ > 0);
    said_ += " call";
    program_.call("call", {place(x), place(y), [given, wanted, wide, fails](void* from, void* to) {
                             if (fails) throw Stopped();
                             wide ? halve<float>(from, to, given, wanted)
                                  : halve<kdgen::BFloat16>(from, to, given, wanted);
                           }});
    const Shape shape = x.shape, to = y.shape;
    fill(y, [&](Int image, Int i, Int j, Int c) {
      const Int at = ((i * to.width + j) * to.channels + c) % shape.values();
      return x.values[static_cast<std::size_t>(image * shape.values() + at)] / 2;
    });
  }

  void combine() {
    const Known x = any();
    const Known* found = other(x.shape, false);
    const Known more = found ? *found : Known{-1, {0, 0, 0, dtype_}, {}};
    Known y = fresh(x.shape.height, x.shape.width, x.shape.channels);
    Array a(Dtype::float32, rows_, r_), b(Dtype::float32, rows_, r_);
    said_ += " combine";
    program_.combine("combine", {place(x), place(more), place(y), a.floats(), b.floats(), rows_});
    fill(y, [&](Int image, Int i, Int j, Int c) {
      const double second = more.id < 0 ? 0.0 : b[row(image)] * more.at(image, i, j, c);
      return a[row(image)] * x.at(image, i, j, c) + second;
    });
  }

  Random& r_;
  Int n_, rows_;
  Dtype dtype_;
  bool coarse_;         // whether anything was rounded to bfloat16 or int8
  bool fails_ = false;  // whether a call does
  Program program_;
  std::vector<Known> known_;
  std::vector<std::int32_t> rows_of_;
  Array images_;
  std::string said_ = "program:";
};

}  // namespace

void check_programs(Random& random) { Net(random).run(); }

}  // namespace sanitize
