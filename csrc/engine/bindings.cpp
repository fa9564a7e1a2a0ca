// kdgen._native.Program: checks what can be checked of numbers and addresses.
#include "bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>

#include "../checks.h"
#include "../isa.h"
#include "program.h"

namespace py = pybind11;

namespace kdgen::engine {

namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 40;  // bytes of an image in one buffer
constexpr std::int64_t kMostChannels = 32768;  // of bytes, whose products a sum of 32 bits holds

const std::map<std::string, Form> kForms = {{"direct", Form::direct},
                                            {"winograd2", Form::winograd2},
                                            {"winograd4", Form::winograd4},
                                            {"up_direct", Form::up_direct},
                                            {"up_winograd", Form::up_winograd}};

Dtype stored(const char* step, int code) {
  require(code == 0 || code == 2, step,
          "dtype is " + std::to_string(code) + "; expected 0 (float32) or 2 (bfloat16).");
  return static_cast<Dtype>(code);
}

Product multiplied(const char* step, int code) {
  require(
      code == 0 || code == 2 || code == 3, step,
      "product is " + std::to_string(code) + "; expected 0 (float32), 2 (bfloat16) or 3 (int8).");
  return static_cast<Product>(code);
}

std::string text(const Shape& s) {
  return std::to_string(s.height) + "x" + std::to_string(s.width) + "x" +
         std::to_string(s.channels);
}

// A buffer that has to be there.
Place needed(const Program& program, const char* step, const char* what, int id) {
  const Place place = program.place(step, id);
  require(static_cast<bool>(place), step, std::string(what) + " is -1; expected a buffer.");
  return place;
}

void same_dtype(const char* step, const Place& a, const Place& b) {
  require(!b || a.shape.dtype == b.shape.dtype, step,
          "buffers have different dtypes; expected one.");
}

void same_size(const char* step, const Place& a, const Place& b) {
  require(!b || (a.shape.height == b.shape.height && a.shape.width == b.shape.width), step,
          text(a.shape) + " and " + text(b.shape) + "; expected the same height and width.");
}

void same_shape(const char* step, const Place& a, const Place& b) {
  same_size(step, a, b);
  require(!b || a.shape.channels == b.shape.channels, step,
          text(a.shape) + " and " + text(b.shape) + "; expected the same channels.");
}

int buffer(Program& program, std::int64_t height, std::int64_t width, std::int64_t channels,
           int dtype) {
  constexpr const char* step = "buffer";
  require(height >= 1 && width >= 1 && channels >= kBlock && channels % kBlock == 0, step,
          std::to_string(height) + "x" + std::to_string(width) + "x" + std::to_string(channels) +
              "; expected sizes of at least 1 and channels in multiples of 16.");
  require(height <= kMost / 4 / width / channels, step,
          "an image is larger than 2^40 bytes; expected less.");
  return program.buffer({height, width, channels, stored(step, dtype)});
}

void check_form(const Convolve& p) {
  constexpr const char* step = "convolve";
  const Shape &x = p.x.shape, &y = p.y.shape;
  if (p.form == Form::direct) {
    require(p.kernel >= 1 && p.kernel <= 8 && p.stride >= 1 && p.before >= 0, step,
            "kernel, stride and before are " + std::to_string(p.kernel) + ", " +
                std::to_string(p.stride) + ", " + std::to_string(p.before) +
                "; expected 1 … 8, at least 1, at least 0.");
    return;
  }
  const std::int64_t times = p.form == Form::up_direct || p.form == Form::up_winograd ? 2 : 1;
  require(
      p.kernel == 3 && p.stride == 1 && p.before == 1 && !p.more && y.height == times * x.height &&
          y.width == times * x.width,
      step,
      "this form cannot serve the layer; expected one input, kernel 3, stride 1, before 1 and an "
      "answer as large as the input (twice as large where it is doubled).");
}

void check_product(const Convolve& p) {
  constexpr const char* step = "convolve";
  const bool wide = p.x.shape.dtype == Dtype::float32;
  const bool direct = p.form == Form::direct || p.form == Form::up_direct;
  if (p.product == Product::int8) {
    require(p.form != Form::winograd4, step,
            "products of int8 in F(4x4), whose transforms would enlarge their rounding too much; "
            "expected another form.");
    const std::int64_t most = std::max(p.x.shape.channels, p.more.shape.channels);
    require(most <= kMostChannels, step,
            std::to_string(most) + " channels are multiplied as int8; expected at most " +
                std::to_string(kMostChannels) + ", so that sums fit 32 bits.");
    return;
  }
  require(p.product == (wide ? Product::float32 : Product::bfloat16) ||
              (wide && !direct && p.product == Product::bfloat16),
          step,
          "product has another dtype than the buffers; expected the same, int8, or bfloat16 in a "
          "Winograd form.");
}

void convolve(Program& program, std::string name, int x, int more, int residual, int y,
              Address weight, Address bias, std::int64_t rows, std::int64_t kernel,
              std::int64_t stride, std::int64_t before, const std::string& form, int product,
              float scale) {
  constexpr const char* step = "convolve";
  const auto known = kForms.find(form);
  require(
      known != kForms.end(), step,
      "form is '" + form + "'; expected direct, winograd2, winograd4, up_direct or up_winograd.");
  const Convolve p = {needed(program, step, "x", x),
                      program.place(step, more),
                      program.place(step, residual),
                      needed(program, step, "y", y),
                      at<float>(weight),
                      at<float>(bias),
                      rows,
                      kernel,
                      stride,
                      before,
                      known->second,
                      multiplied(step, product),
                      scale};
  check_form(p);
  for (const Place& other : {p.more, p.residual, p.y}) same_dtype(step, p.x, other);
  same_size(step, p.x, p.more);
  same_shape(step, p.y, p.residual);
  require(rows >= 1, step, "rows is " + std::to_string(rows) + "; expected at least 1.");
  check_product(p);
  require_pointers(step, {p.weight, p.bias});
  program.convolve(std::move(name), p);
}

void normalise(Program& program, std::string name, int x, int more, int y, Address gain,
               Address offset, std::int64_t rows, std::int64_t groups, std::int64_t own,
               std::int64_t others, float eps, bool act) {
  constexpr const char* step = "normalise";
  const Normalise p = {needed(program, step, "x", x),
                       program.place(step, more),
                       needed(program, step, "y", y),
                       {},
                       {},
                       at<float>(gain),
                       at<float>(offset),
                       rows,
                       groups,
                       own,
                       others,
                       eps,
                       act};
  for (const Place& other : {p.more, p.y}) {
    same_dtype(step, p.x, other);
    same_size(step, p.x, other);
  }
  require(
      p.y.shape.channels == p.x.shape.channels + p.more.shape.channels, step,
      "y has " + std::to_string(p.y.shape.channels) + " channels; expected those of x and more.");
  require(own >= 0 && own <= p.x.shape.channels && others >= 0 && others <= p.more.shape.channels &&
              groups >= 1 && (own + others) % groups == 0 && own + others > 0,
          step,
          "own, others and groups are " + std::to_string(own) + ", " + std::to_string(others) +
              ", " + std::to_string(groups) +
              "; expected channels of x and more, and groups that divide them.");
  require(eps >= 0, step, "eps is " + std::to_string(eps) + "; expected at least 0.");
  require(rows >= 1, step, "rows is " + std::to_string(rows) + "; expected at least 1.");
  require_pointers(step, {p.gain, p.offset});
  program.normalise(std::move(name), p);
}

void attend(Program& program, std::string name, int q, std::int64_t q_at, int k, std::int64_t k_at,
            int v, std::int64_t v_at, int y, std::int64_t heads, std::int64_t width, float scale) {
  constexpr const char* step = "attend";
  const Attend p = {{needed(program, step, "q", q), q_at},
                    {needed(program, step, "k", k), k_at},
                    {needed(program, step, "v", v), v_at},
                    needed(program, step, "y", y),
                    heads,
                    width,
                    scale};
  require(
      heads >= 1 && width >= kBlock && width % kBlock == 0 && p.y.shape.channels == heads * width,
      step,
      std::to_string(heads) + " heads of " + std::to_string(width) +
          " channels; expected multiples of 16 that make up y.");
  require(scale >= 0 && std::isfinite(scale), step,
          "scale is " + std::to_string(scale) + "; expected a finite one, at least 0.");
  for (const Slice& slice : {p.q, p.k, p.v}) {
    same_dtype(step, p.y, slice.place);
    same_size(step, p.y, slice.place);
    require(slice.first >= 0 && slice.first % kBlock == 0 &&
                slice.first + heads * width <= slice.place.shape.channels,
            step,
            std::to_string(heads * width) + " channels from " + std::to_string(slice.first) +
                " on; expected a multiple of 16 and an end inside " + text(slice.place.shape) +
                ".");
  }
  program.attend(std::move(name), p);
}

void resample(Program& program, std::string name, int x, int y, const std::vector<float>& taps,
              bool up, std::int64_t before) {
  constexpr const char* step = "resample";
  const Resample p = {needed(program, step, "x", x),
                      needed(program, step, "y", y),
                      taps.data(),
                      static_cast<std::int64_t>(taps.size()),
                      before,
                      up};
  same_dtype(step, p.x, p.y);
  require(p.x.shape.channels == p.y.shape.channels, step,
          text(p.x.shape) + " and " + text(p.y.shape) + "; expected the same channels.");
  require(before >= 0, step, "before is " + std::to_string(before) + "; expected at least 0.");
  require(!taps.empty() && taps.size() <= 16, step,
          std::to_string(taps.size()) + " taps; expected 1 … 16.");
  program.resample(std::move(name), p);
}

void combine(Program& program, std::string name, int x, int more, int y, Address a, Address b,
             std::int64_t rows) {
  constexpr const char* step = "combine";
  const Combine p = {needed(program, step, "x", x),
                     program.place(step, more),
                     needed(program, step, "y", y),
                     at<float>(a),
                     at<float>(b),
                     rows};
  for (const Place& other : {p.more, p.y}) {
    same_dtype(step, p.x, other);
    same_shape(step, p.x, other);
  }
  require(rows >= 1, step, "rows is " + std::to_string(rows) + "; expected at least 1.");
  require_pointers(step, {p.a});
  if (p.more) require_pointers(step, {p.b});
  program.combine(std::move(name), p);
}

// The callback is handed an image's share of both buffers, as memory that is gone when it returns.
void call(Program& program, std::string name, int x, int y, const py::function& compute) {
  constexpr const char* step = "call";
  const Place from = needed(program, step, "x", x), to = needed(program, step, "y", y);
  const py::ssize_t read = from.shape.bytes(), written = to.shape.bytes();
  const auto called = [compute, read, written](void* x, void* y) {
    const py::gil_scoped_acquire held;
    compute(py::memoryview::from_memory(x, read), py::memoryview::from_memory(y, written));
  };
  program.call(std::move(name), {from, to, called});
}

void end(Program& program, int id, std::int64_t channels, bool in) {
  const char* step = in ? "input" : "output";
  const Ends p = {needed(program, step, in ? "y" : "x", id), channels};
  require(channels >= 1 && channels <= p.place.shape.channels, step,
          std::to_string(channels) + " channels; expected 1 … " +
              std::to_string(p.place.shape.channels) + ".");
  in ? program.input(p) : program.output(p);
}

void check_run(const Program& program, Address images, Address rows, Address out, std::int64_t n,
               int threads) {
  constexpr const char* step = "run";
  require(n >= 0, step, "n is " + std::to_string(n) + "; expected at least 0.");
  require(threads >= 1, step, "threads is " + std::to_string(threads) + "; expected at least 1.");
  require(program.complete(), step, "the program has no input or no output; expected one of each.");
  if (n == 0) return;
  require_pointers(step, {at<void>(images), at<void>(out)});
  const std::int64_t known = program.rows();
  require(rows != 0 || known == 1, step,
          "rows is 0 and a table has " + std::to_string(known) + "; expected a row an image.");
  for (std::int64_t i = 0; known > 1 && i < n; ++i) {
    const std::int32_t row = at<const std::int32_t>(rows)[i];
    require(
        row >= 0 && row < known, step,
        "a row is " + std::to_string(row) + "; expected 0 … " + std::to_string(known - 1) + ".");
  }
}

void run(Program& program, Address images, Address rows, Address out, std::int64_t n, int threads) {
  check_run(program, images, rows, out, n, threads);
  const py::gil_scoped_release released;
  program.run(at<float>(images), at<std::int32_t>(rows), at<float>(out), n, threads);
}

std::vector<std::pair<std::string, double>> profile(Program& program, Address images, Address rows,
                                                    Address out, std::int64_t n) {
  check_run(program, images, rows, out, n, 1);
  const py::gil_scoped_release released;
  return program.profile(at<float>(images), at<std::int32_t>(rows), at<float>(out), n);
}

}  // namespace

void bind(py::module_& m) {
  py::class_<Program>(m, "Program")
      .def(py::init([](const std::string& isa, bool guarded) {
             return std::make_unique<Program>(engine_of(isa), guarded);
           }),
           py::arg("isa") = "", py::arg("guarded") = false)
      .def_property_readonly("isa", [](const Program& p) { return std::string(p.engine().name); })
      .def_property_readonly("fast_bf16", [](const Program& p) { return p.engine().fast_bf16; })
      .def_property_readonly("fast_int8", [](const Program& p) { return p.engine().fast_int8; })
      .def_property_readonly("packed", &Program::packed)
      .def("buffer", &buffer)
      .def("input", [](Program& p, int y, std::int64_t channels) { end(p, y, channels, true); })
      .def("output", [](Program& p, int x, std::int64_t channels) { end(p, x, channels, false); })
      .def("convolve", &convolve)
      .def("normalise", &normalise)
      .def("attend", &attend)
      .def("resample", &resample)
      .def("combine", &combine)
      .def("call", &call)
      .def("run", &run)
      .def("profile", &profile)
      // A run that it waits for may be waiting for Python's lock.
      .def(
          "workspace",
          [](Program& p, std::int64_t n, int threads) { return p.workspace(n, threads); },
          py::call_guard<py::gil_scoped_release>());
  m.def("use_one_thread", &use_one_thread);
}

}  // namespace kdgen::engine
