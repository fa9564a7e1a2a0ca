// kdgen._cuda: checks what can be checked of raw pointers, releases the GIL, launches.
//
// Tensors arrive as addresses and the stream as torch's number for it, so that the module works
// with every torch; the CUDA runtime is inside, so that it imports where there is no driver.
#include <pybind11/pybind11.h>

#include "../checks.h"
#include "attention.h"
#include "bias_residual.h"
#include "group_norm_silu.h"
#include "philox.h"
#include "steps.h"

namespace py = pybind11;
namespace cuda = kdgen::cuda;
using kdgen::Address;
using kdgen::at;
using kdgen::Draw;
using kdgen::Dtype;
using kdgen::dtype_of;
using kdgen::kAligned;
using kdgen::Philox;
using kdgen::plan;
using kdgen::Queue;
using kdgen::require;
using kdgen::require_pointers;
using kdgen::Slabs;
using kdgen::cuda::Answer;
using kdgen::cuda::AttentionBackward;
using kdgen::cuda::AttentionForward;
using kdgen::cuda::AttentionShape;
using kdgen::cuda::bias_parts;
using kdgen::cuda::BiasResidual;
using kdgen::cuda::BiasResidualBackward;
using kdgen::cuda::Chain;
using kdgen::cuda::kWidest;
using kdgen::cuda::Norm;
using kdgen::cuda::NormBackward;
using kdgen::cuda::NormForward;
using kdgen::cuda::Planes;
using kdgen::cuda::Scale;
using kdgen::cuda::Step;
using kdgen::cuda::Tokens;

namespace {

void require_aligned(const char* op, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    require(reinterpret_cast<std::uintptr_t>(p) % kAligned == 0, op,
            "an address is no multiple of 16; expected one. Copy the tensor.");
  }
}

Queue queue(int device, Address stream) {
  return {device, at<std::remove_pointer_t<cudaStream_t>>(stream)};
}

// ---- group norm ---------------------------------------------------------------------------------

Slabs cut(const char* op, int size, int channels, int first, int groups, int dtype, int tiles) {
  require(size > 0 && channels > 0 && first > 0 && first <= channels, op, "a size is wrong.");
  require(groups > 0 && channels % groups == 0, op,
          std::to_string(channels) + " channels, groups is " + std::to_string(groups) +
              "; expected groups to divide channels.");
  const int bytes = dtype_of(op, dtype) == Dtype::float32 ? 4 : 2;
  const Slabs s = plan(size, channels, first, groups, bytes, tiles);
  require(s.count > 0, op, "the channels cannot be cut into packs of 16 bytes.");
  return s;
}

// Slabs of an image and rows in shared memory at once; (0, 0) where the kernels cannot cut it.
py::tuple group_norm_plan(int size, int channels, int first, int groups, int bytes, int tiles) {
  const Slabs s = plan(size, channels, first, groups, bytes, tiles);
  return py::make_tuple(s.count, s.count ? s.rows : 0, s.per_slab);
}

void group_norm_silu_forward(Address x, Address more, Address weight, Address bias, Address scale,
                             Address shift, Address add, Address y, Address mean, Address rstd,
                             std::int64_t n, int size, int channels, int first, int groups,
                             float eps, bool act, bool add_per_image, int dtype, int device,
                             Address stream) {
  constexpr const char* op = "group_norm_silu_forward";
  NormForward p;
  static_cast<Norm&>(p) = {at<void>(x),
                           at<void>(more),
                           at<float>(weight),
                           at<float>(bias),
                           at<float>(scale),
                           at<float>(shift),
                           at<float>(add),
                           n,
                           eps,
                           act,
                           add_per_image};
  p.y = at<void>(y), p.mean = at<float>(mean), p.rstd = at<float>(rstd);
  require_pointers(op, {p.x, p.weight, p.bias, p.y, p.mean, p.rstd});
  require_aligned(op, {p.x, p.more, p.y, p.weight, p.bias, p.scale, p.shift, p.add});
  require(!p.more == (first == channels), op, "the second input and the channels disagree.");
  const Slabs s = cut(op, size, channels, first, groups, dtype, 1);
  const py::gil_scoped_release released;
  cuda::group_norm_silu_forward(p, s, static_cast<Dtype>(dtype), queue(device, stream));
}

void group_norm_silu_backward(Address dy, Address x, Address more, Address weight, Address bias,
                              Address mean, Address rstd, Address scale, Address shift, Address add,
                              Address dx, Address dmore, Address dweight, Address dbias,
                              Address dscale, Address dshift, Address dadd, Address scratch,
                              std::int64_t n, int size, int channels, int first, int groups,
                              bool act, bool add_per_image, int dtype, int device, Address stream) {
  constexpr const char* op = "group_norm_silu_backward";
  NormBackward p;
  static_cast<Norm&>(p) = {at<void>(x),
                           at<void>(more),
                           at<float>(weight),
                           at<float>(bias),
                           at<float>(scale),
                           at<float>(shift),
                           at<float>(add),
                           n,
                           0.0f,
                           act,
                           add_per_image};
  p.dy = at<void>(dy), p.mean = at<float>(mean), p.rstd = at<float>(rstd);
  p.dx = at<void>(dx), p.dmore = at<void>(dmore);
  p.s1 = at<float>(scratch), p.s2 = p.s1 + n * channels, p.s3 = p.s2 + n * channels;
  p.dweight = at<float>(dweight), p.dbias = at<float>(dbias);
  p.dscale = at<float>(dscale), p.dshift = at<float>(dshift), p.dadd = at<float>(dadd);
  require_pointers(op,
                   {p.dy, p.x, p.weight, p.bias, p.mean, p.rstd, p.dx, p.dweight, p.dbias, p.s1});
  require_aligned(op,
                  {p.dy, p.x, p.more, p.dx, p.dmore, p.weight, p.bias, p.scale, p.shift, p.add});
  require(!p.more == (first == channels) && !p.more == !p.dmore, op,
          "the second input and the channels disagree.");
  const Slabs s = cut(op, size, channels, first, groups, dtype, 2);
  const py::gil_scoped_release released;
  cuda::group_norm_silu_backward(p, s, static_cast<Dtype>(dtype), queue(device, stream));
}

// ---- steps --------------------------------------------------------------------------------------

Answer answer_of(const char* op, Address y, std::int64_t n, std::int64_t channels,
                 std::int64_t size, bool channels_last, bool bytes) {
  require(n >= 0 && channels >= 0 && size >= 0, op, "a size is negative.");
  require(channels * size < (std::int64_t{1} << 31), op,
          "an image has 2**31 values or more; expected fewer.");
  return {at<void>(y), n, static_cast<int>(channels), static_cast<int>(size), channels_last, bytes};
}

void step(Address x_t, Address x0, Address y, Address a_each, Address b_each, float a, float b,
          float clip, std::int64_t n, std::int64_t channels, std::int64_t size, bool channels_last,
          bool bytes, int dtype, int device, Address stream) {
  constexpr const char* op = "ddim_update";
  const Step s = {at<void>(x_t), at<void>(x0),       at<float>(a_each), at<float>(b_each), a, b,
                  clip,          dtype_of(op, dtype)};
  require_pointers(op, {s.x_t, at<void>(y)});
  const Answer out = answer_of(op, y, n, channels, size, channels_last, bytes);
  const py::gil_scoped_release released;
  cuda::step(s, out, queue(device, stream));
}

void chain_step(Address x_t, Address raw, Address table, Address number, Address y,
                std::int64_t steps, float clip, std::int64_t n, std::int64_t channels,
                std::int64_t size, bool channels_last, int raw_channels, bool bytes, int dtype,
                int raw_dtype, int device, Address stream) {
  constexpr const char* op = "chain_step";
  const Chain c = {
      at<void>(x_t), at<void>(raw), at<float>(table),    at<std::int64_t>(number), steps,
      clip,          raw_channels,  dtype_of(op, dtype), dtype_of(op, raw_dtype)};
  require_pointers(op, {c.x_t, c.raw, c.table, c.step, at<void>(y)});
  require(steps > 0, op, "the table is empty.");
  const Answer out = answer_of(op, y, n, channels, size, channels_last, bytes);
  const py::gil_scoped_release released;
  cuda::chain_step(c, out, queue(device, stream));
}

void scale_input(Address x, Address y, Address c_each, Address number, std::int64_t steps, float c,
                 std::int64_t n, std::int64_t channels, std::int64_t size, bool channels_last,
                 std::int64_t out_channels, int dtype, int out_dtype, int device, Address stream) {
  constexpr const char* op = "scale_input";
  require(channels > 0 && channels <= out_channels, op, "the answer has fewer channels than x.");
  const Scale s = {at<void>(x),
                   at<float>(c_each),
                   at<std::int64_t>(number),
                   steps,
                   c,
                   static_cast<int>(channels),
                   channels_last,
                   dtype_of(op, dtype)};
  require_pointers(op, {s.x, at<void>(y)});
  require(!s.step || (s.c_each && steps > 0), op, "a step needs a table.");
  const Answer out = answer_of(op, y, n, out_channels, size, true, false);
  const Dtype answers = dtype_of(op, out_dtype);
  const py::gil_scoped_release released;
  cuda::scale_input(s, out, answers, queue(device, stream));
}

void philox(std::uint64_t seed, std::uint32_t stream_of_numbers, Address index, Address out,
            std::int64_t n, std::int64_t size, int draw, int device, Address stream) {
  constexpr const char* op = "philox";
  require(n >= 0 && size >= 0, op, "a size is negative.");
  require(draw >= 0 && draw <= 2, op,
          "draw is unknown; expected 0 (words), 1 (uniform), 2 (normal).");
  require_pointers(op, {at<void>(index), at<void>(out)});
  const Philox p = {seed,
                    stream_of_numbers,
                    at<std::int64_t>(index),
                    at<void>(out),
                    n,
                    size,
                    static_cast<Draw>(draw),
                    1};
  const py::gil_scoped_release released;
  cuda::philox(p, queue(device, stream));
}

// ---- bias and residual --------------------------------------------------------------------------

Planes planes_of(const char* op, std::int64_t n, int channels, int size, bool channels_last) {
  require(n > 0 && channels > 0 && size > 0, op, "a size is wrong.");
  return {n, channels, size, channels_last};
}

void bias_residual(Address x, Address residual, Address bias, Address y, float scale,
                   std::int64_t n, int channels, int size, bool channels_last, int dtype,
                   int device, Address stream) {
  constexpr const char* op = "bias_residual";
  const BiasResidual p = {at<void>(x), at<void>(residual), at<float>(bias), at<void>(y), scale};
  require_pointers(op, {p.x, p.residual, p.y});
  const Planes s = planes_of(op, n, channels, size, channels_last);
  const Dtype kind = dtype_of(op, dtype);
  const py::gil_scoped_release released;
  cuda::bias_residual(p, s, kind, queue(device, stream));
}

void bias_residual_backward(Address dy, Address dx, Address dbias, Address partial, float scale,
                            std::int64_t n, int channels, int size, bool channels_last, int dtype,
                            int device, Address stream) {
  constexpr const char* op = "bias_residual_backward";
  const BiasResidualBackward p = {at<void>(dy), at<void>(dx), at<float>(dbias), at<float>(partial),
                                  scale};
  require_pointers(op, {p.dy});
  require(!p.dbias == !p.partial, op, "sums need scratch.");
  const Planes s = planes_of(op, n, channels, size, channels_last);
  const Dtype kind = dtype_of(op, dtype);
  const py::gil_scoped_release released;
  cuda::bias_residual_backward(p, s, kind, queue(device, stream));
}

std::int64_t bias_residual_parts(std::int64_t n, int channels, int size, bool channels_last) {
  return bias_parts(planes_of("bias_residual_parts", n, channels, size, channels_last));
}

// ---- attention ----------------------------------------------------------------------------------

Tokens tokens(Address base, std::int64_t image, std::int64_t token) {
  return {at<void>(base), image, token};
}

void require_tokens(const char* op, std::initializer_list<Tokens> all) {
  for (const Tokens& t : all) {
    require_pointers(op, {t.base});
    require_aligned(op, {t.base});
    require(t.image % 8 == 0 && t.token % 8 == 0, op,
            "a stride is no multiple of 8; expected one. Copy the tensor.");
  }
}

AttentionShape shape_of(const char* op, std::int64_t n, int heads, int size, int width, int dtype) {
  require(n >= 0 && heads > 0 && size > 0, op, "a size is wrong.");
  require(width > 0 && width % 8 == 0 && width <= kWidest, op,
          "a head has " + std::to_string(width) + " channels; expected a multiple of 8 up to " +
              std::to_string(kWidest) + ".");
  const Dtype kind = dtype_of(op, dtype);
  require(kind != Dtype::float32, op,
          "dtype is 0 (float32); expected 1 (float16) or 2 (bfloat16).");
  return {n, heads, size, width, kind};
}

void attention_forward(Address q, std::int64_t q_image, std::int64_t q_token, Address k,
                       std::int64_t k_image, std::int64_t k_token, Address v, std::int64_t v_image,
                       std::int64_t v_token, Address out, Address logsumexp, float scale,
                       std::int64_t n, int heads, int size, int width, int dtype, int device,
                       Address stream) {
  constexpr const char* op = "attention_forward";
  const AttentionShape s = shape_of(op, n, heads, size, width, dtype);
  const std::int64_t token = std::int64_t{1} * heads * width;
  const AttentionForward p = {tokens(q, q_image, q_token), tokens(k, k_image, k_token),
                              tokens(v, v_image, v_token), tokens(out, size * token, token),
                              at<float>(logsumexp),        scale};
  require_tokens(op, {p.q, p.k, p.v, p.out});
  require_pointers(op, {p.logsumexp});
  const py::gil_scoped_release released;
  cuda::attention_forward(p, s, queue(device, stream));
}

void attention_backward(Address dout, Address q, std::int64_t q_image, std::int64_t q_token,
                        Address k, std::int64_t k_image, std::int64_t k_token, Address v,
                        std::int64_t v_image, std::int64_t v_token, Address out, Address logsumexp,
                        Address delta, Address dq, Address dk, Address dv, float scale,
                        std::int64_t n, int heads, int size, int width, int dtype, int device,
                        Address stream) {
  constexpr const char* op = "attention_backward";
  const AttentionShape s = shape_of(op, n, heads, size, width, dtype);
  const std::int64_t token = std::int64_t{1} * heads * width, image = size * token;
  const AttentionBackward p = {tokens(dout, image, token),
                               tokens(q, q_image, q_token),
                               tokens(k, k_image, k_token),
                               tokens(v, v_image, v_token),
                               tokens(out, image, token),
                               tokens(dq, image, token),
                               tokens(dk, image, token),
                               tokens(dv, image, token),
                               at<float>(logsumexp),
                               at<float>(delta),
                               scale};
  require_tokens(op, {p.dout, p.q, p.k, p.v, p.out, p.dq, p.dk, p.dv});
  require_pointers(op, {p.logsumexp, p.delta});
  const py::gil_scoped_release released;
  cuda::attention_backward(p, s, queue(device, stream));
}

// Devices that the driver shows, and what it says when there are none.
py::tuple devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return py::make_tuple(error == cudaSuccess ? count : 0,
                        error == cudaSuccess ? "" : cudaGetErrorString(error));
}

}  // namespace

PYBIND11_MODULE(KDGEN_MODULE, m) {
  m.doc() = "kdgen's CUDA kernels.";
  m.attr("version") = KDGEN_VERSION;
  m.attr("archs") = KDGEN_CUDA_ARCHS;
  m.attr("emulated") = static_cast<bool>(KDGEN_EMULATED);
#if KDGEN_EMULATED
  m.def("schedule", [](unsigned order) { emulation::order = order; });
#endif
  m.def("devices", &devices);
  m.def("group_norm_plan", &group_norm_plan);
  m.def("group_norm_silu_forward", &group_norm_silu_forward);
  m.def("group_norm_silu_backward", &group_norm_silu_backward);
  m.def("step", &step);
  m.def("chain_step", &chain_step);
  m.def("scale_input", &scale_input);
  m.def("philox", &philox);
  m.def("bias_residual_parts", &bias_residual_parts);
  m.def("bias_residual", &bias_residual);
  m.def("bias_residual_backward", &bias_residual_backward);
  m.def("attention_forward", &attention_forward);
  m.def("attention_backward", &attention_backward);
}
