// kdgen._native: checks what can be checked of raw pointers, releases the GIL, forwards.
//
// Tensors arrive as addresses (`tensor.data_ptr()`), so the module works with every torch.
#include "engine/bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "checks.h"
#include "isa.h"

namespace py = pybind11;
using kdgen::Address;
using kdgen::at;
using kdgen::dtype_of;
using kdgen::require;
using kdgen::require_pointers;
using kdgen::threads_of;

namespace {

// Uninitialised, aligned working memory. A little is kept by each calling thread, because fresh
// pages cost more than the arithmetic on small images.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes) {
    constexpr std::int64_t kept = 8 << 20;
    static thread_local std::vector<char> small;
    const std::size_t room = static_cast<std::size_t>(bytes) + 64;
    if (bytes > kept) {
      large_.reset(new char[room]);
    } else if (small.size() < room) {
      small.resize(room);
    }
    char* base = large_ ? large_.get() : small.data();
    aligned_ = base + (64 - reinterpret_cast<std::uintptr_t>(base) % 64) % 64;
  }
  char* aligned() const { return aligned_; }

 private:
  std::unique_ptr<char[]> large_;
  char* aligned_;
};

void check(const char* op, const kdgen::GroupNorm& p) {
  require(p.n >= 0 && p.channels >= 0 && p.size >= 0, op, "a size is negative.");
  require(p.groups > 0 && p.channels % p.groups == 0, op,
          std::to_string(p.channels) + " channels, groups is " + std::to_string(p.groups) +
              "; expected groups to divide channels.");
  require(p.own == p.channels || (p.channels_last && p.own > 0 && p.own < p.channels), op,
          "x has " + std::to_string(p.own) + " of " + std::to_string(p.channels) +
              " channels; expected all, or channels last and more for the rest.");
  const bool used = p.n * p.channels * p.size > 0;
  if (used) require_pointers(op, {p.x, p.weight, p.bias});
  if (used && p.own < p.channels) require_pointers(op, {p.more});
}

bool empty(const kdgen::GroupNorm& p) { return p.n * p.channels * p.size == 0; }

void group_norm_silu_forward(Address x, Address weight, Address bias, Address scale, Address shift,
                             Address add, Address more, Address y, Address mean, Address rstd,
                             std::int64_t n, std::int64_t channels, std::int64_t own,
                             std::int64_t size, std::int64_t groups, float eps, bool act,
                             bool channels_last, bool add_per_image, int dtype, int threads) {
  constexpr const char* op = "group_norm_silu_forward";
  kdgen::GroupNormForward p;
  static_cast<kdgen::GroupNorm&>(p) = {at<void>(x),
                                       at<float>(weight),
                                       at<float>(bias),
                                       at<float>(scale),
                                       at<float>(shift),
                                       at<float>(add),
                                       n,
                                       channels,
                                       size,
                                       groups,
                                       eps,
                                       act,
                                       channels_last,
                                       add_per_image,
                                       dtype_of(op, dtype),
                                       threads_of(op, threads),
                                       at<void>(more),
                                       own};
  p.y = at<void>(y);
  p.mean = at<float>(mean);
  p.rstd = at<float>(rstd);
  check(op, p);
  if (empty(p)) return;
  require_pointers(op, {p.y, p.mean, p.rstd});
  const py::gil_scoped_release released;
  const Scratch scratch(kdgen::table().forward_scratch(p));
  kdgen::table().group_norm_silu_forward(p, scratch.aligned());
}

void group_norm_silu_backward(Address dy, Address x, Address weight, Address bias, Address mean,
                              Address rstd, Address scale, Address shift, Address add, Address more,
                              Address dx, Address dmore, Address dweight, Address dbias,
                              Address dscale, Address dshift, Address dadd, std::int64_t n,
                              std::int64_t channels, std::int64_t own, std::int64_t size,
                              std::int64_t groups, bool act, bool channels_last, bool add_per_image,
                              int dtype, int threads) {
  constexpr const char* op = "group_norm_silu_backward";
  kdgen::GroupNormBackward p;
  static_cast<kdgen::GroupNorm&>(p) = {at<void>(x),
                                       at<float>(weight),
                                       at<float>(bias),
                                       at<float>(scale),
                                       at<float>(shift),
                                       at<float>(add),
                                       n,
                                       channels,
                                       size,
                                       groups,
                                       0.0f,
                                       act,
                                       channels_last,
                                       add_per_image,
                                       dtype_of(op, dtype),
                                       threads_of(op, threads),
                                       at<void>(more),
                                       own};
  p.dy = at<void>(dy);
  p.mean = at<float>(mean);
  p.rstd = at<float>(rstd);
  p.dx = at<void>(dx);
  p.dmore = at<void>(dmore);
  p.dweight = at<float>(dweight);
  p.dbias = at<float>(dbias);
  p.dscale = at<float>(dscale);
  p.dshift = at<float>(dshift);
  p.dadd = at<float>(dadd);
  check(op, p);
  if (empty(p)) return;
  require_pointers(op, {p.dy, p.mean, p.rstd, p.dx, p.dweight, p.dbias});
  if (p.own < p.channels) require_pointers(op, {p.dmore});
  const py::gil_scoped_release released;
  const Scratch scratch(kdgen::table().backward_scratch(p));
  kdgen::table().group_norm_silu_backward(p, scratch.aligned());
}

kdgen::DdimUpdate step(const char* op, Address x_t, Address x0, Address y, Address a_each,
                       Address b_each, float a, float b, float clip, std::int64_t n,
                       std::int64_t per_image, int dtype, int threads) {
  require(n >= 0 && per_image >= 0, op, "a size is negative.");
  if (n * per_image > 0) require_pointers(op, {at<void>(x_t), at<void>(y)});
  return {at<void>(x_t),
          at<void>(x0),
          at<void>(y),
          at<float>(a_each),
          at<float>(b_each),
          a,
          b,
          clip,
          n,
          per_image,
          dtype_of(op, dtype),
          threads_of(op, threads)};
}

void ddim_update(Address x_t, Address x0, Address y, Address a_each, Address b_each, float a,
                 float b, float clip, std::int64_t n, std::int64_t per_image, int dtype,
                 int threads) {
  constexpr const char* op = "ddim_update";
  const kdgen::DdimUpdate p =
      step(op, x_t, x0, y, a_each, b_each, a, b, clip, n, per_image, dtype, threads);
  if (n * per_image > 0) require_pointers(op, {p.x0});
  const py::gil_scoped_release released;
  kdgen::table().ddim_update(p);
}

void to_uint8(Address x_t, Address x0, Address y, Address a_each, Address b_each, float a, float b,
              float clip, std::int64_t n, std::int64_t channels, std::int64_t size,
              bool channels_last, int dtype, int threads) {
  constexpr const char* op = "to_uint8";
  require(channels >= 0 && size >= 0, op, "a size is negative.");
  const kdgen::ToUint8 p = {
      step(op, x_t, x0, y, a_each, b_each, a, b, clip, n, channels * size, dtype, threads),
      channels, size, channels_last};
  const py::gil_scoped_release released;
  kdgen::table().to_uint8(p);
}

void bias_residual(Address x, Address residual, Address bias, Address y, float scale,
                   std::int64_t n, std::int64_t channels, std::int64_t size, bool channels_last,
                   int dtype, int threads) {
  constexpr const char* op = "bias_residual";
  require(n >= 0 && channels >= 0 && size >= 0, op, "a size is negative.");
  const kdgen::BiasResidual p = {at<void>(x),
                                 at<void>(residual),
                                 at<float>(bias),
                                 at<void>(y),
                                 scale,
                                 n,
                                 channels,
                                 size,
                                 channels_last,
                                 dtype_of(op, dtype),
                                 threads_of(op, threads)};
  if (n * channels * size == 0) return;
  require_pointers(op, {p.x, p.residual, p.y});
  const py::gil_scoped_release released;
  kdgen::table().bias_residual(p);
}

void bias_residual_backward(Address dy, Address dx, Address dbias, Address partial, float scale,
                            std::int64_t n, std::int64_t channels, std::int64_t size,
                            bool channels_last, int dtype, int threads) {
  constexpr const char* op = "bias_residual_backward";
  require(n >= 0 && channels >= 0 && size >= 0, op, "a size is negative.");
  const kdgen::BiasResidualBackward p = {
      at<void>(dy), at<void>(dx),  at<float>(dbias),    at<float>(partial),     scale, n, channels,
      size,         channels_last, dtype_of(op, dtype), threads_of(op, threads)};
  if (n * channels * size == 0) return;
  require_pointers(op, {p.dy});
  if (p.dbias) require_pointers(op, {p.partial});
  const py::gil_scoped_release released;
  kdgen::table().bias_residual_backward(p);
}

void chain_step(Address x_t, Address raw, Address y, Address table, Address step,
                std::int64_t steps, float clip, std::int64_t n, std::int64_t channels,
                std::int64_t size, std::int64_t raw_channels, bool channels_last, bool bytes,
                int dtype, int raw_dtype, int threads) {
  constexpr const char* op = "chain_step";
  require(n >= 0 && channels >= 0 && size >= 0, op, "a size is negative.");
  require(steps >= 1, op, "steps is " + std::to_string(steps) + "; expected at least 1.");
  require(raw_channels >= channels, op, "raw has fewer channels than x_t.");
  const kdgen::ChainStep p = {at<void>(x_t),
                              at<void>(raw),
                              at<void>(y),
                              at<float>(table),
                              at<std::int64_t>(step),
                              steps,
                              clip,
                              n,
                              channels,
                              size,
                              raw_channels,
                              channels_last,
                              bytes,
                              dtype_of(op, dtype),
                              dtype_of(op, raw_dtype),
                              threads_of(op, threads)};
  if (n * channels * size == 0) return;
  require_pointers(op, {p.x_t, p.raw, p.y, p.table, p.step});
  const py::gil_scoped_release released;
  kdgen::table().chain_step(p);
}

void scale_input(Address x, Address y, Address c_each, Address step, std::int64_t steps, float c,
                 std::int64_t n, std::int64_t channels, std::int64_t size,
                 std::int64_t out_channels, bool channels_last, int dtype, int out_dtype,
                 int threads) {
  constexpr const char* op = "scale_input";
  require(n >= 0 && channels >= 0 && size >= 0, op, "a size is negative.");
  require(out_channels >= channels, op, "the answer has fewer channels than x.");
  require(!step || (c_each && steps >= 1), op, "a step needs a table of at least 1.");
  const kdgen::ScaleInput p = {at<void>(x),
                               at<void>(y),
                               at<float>(c_each),
                               at<std::int64_t>(step),
                               steps,
                               c,
                               n,
                               channels,
                               size,
                               out_channels,
                               channels_last,
                               dtype_of(op, dtype),
                               dtype_of(op, out_dtype),
                               threads_of(op, threads)};
  if (n * out_channels * size == 0) return;
  require_pointers(op, {p.y});
  if (channels > 0) require_pointers(op, {p.x});
  const py::gil_scoped_release released;
  kdgen::table().scale_input(p);
}

void philox(std::uint64_t seed, std::uint32_t stream, Address index, Address out, std::int64_t n,
            std::int64_t size, int draw, int threads) {
  constexpr const char* op = "philox";
  require(n >= 0 && size >= 0, op, "a size is negative.");
  require(draw >= 0 && draw <= 2, op,
          "draw is unknown; expected 0 (words), 1 (uniform), 2 (normal).");
  if (n * size > 0) require_pointers(op, {at<void>(index), at<void>(out)});
  const kdgen::Philox p = {seed, stream, at<std::int64_t>(index),        at<void>(out),
                           n,    size,   static_cast<kdgen::Draw>(draw), threads_of(op, threads)};
  const py::gil_scoped_release released;
  kdgen::table().philox(p);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "kdgen's compiled CPU kernels.";
  m.attr("version") = KDGEN_VERSION;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("isa", &kdgen::isa);
  m.def("supported_isas", &kdgen::supported_isas);
  m.def("select_isa", &kdgen::select_isa);
  m.def("group_norm_silu_forward", &group_norm_silu_forward);
  m.def("group_norm_silu_backward", &group_norm_silu_backward);
  m.def("ddim_update", &ddim_update);
  m.def("to_uint8", &to_uint8);
  m.def("bias_residual", &bias_residual);
  m.def("bias_residual_backward", &bias_residual_backward);
  m.def("chain_step", &chain_step);
  m.def("scale_input", &scale_input);
  m.def("philox", &philox);
  kdgen::engine::bind(m);
}
