// What the kernels need of a GPU beside plain arithmetic: 16-byte packs, copies in the background,
// shuffles, launches.
//
// tests/emulation holds a <cuda_runtime.h> under which the same kernels run on a CPU, a
// thread a fiber; what is inline assembly here has its meaning spelled out there.
#pragma once

#include <cuda_runtime.h>

#include "../math.h"
#include "queue.h"

#define KDGEN_DEVICE static __device__ __forceinline__
#define KDGEN_BOTH static __host__ __device__ __forceinline__

namespace kdgen {

// Sixteen bytes: the widest load and store there is.
using Pack = uint4;

template <class T>
constexpr int kPack = static_cast<int>(sizeof(Pack) / sizeof(T));

#ifdef __CUDACC__

KDGEN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char kdgen_shared[];
  return kdgen_shared;
}

KDGEN_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Sixteen bytes to shared memory in the background, past the first-level cache; zeros if !live.
KDGEN_DEVICE void copy_behind(void* shared, const void* global, bool live = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(live ? 16 : 0)
               : "memory");
}

// Closes a group of copies.
KDGEN_DEVICE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies but the last `Left` groups. Other threads' need a barrier too.
template <int Left>
KDGEN_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

template <class T>
KDGEN_DEVICE T shuffled(T v, int lanes) {
  return __shfl_xor_sync(0xffffffffu, v, lanes);
}

#endif

// ---- sixteen bytes as floats
// ---------------------------------------------------------------------

KDGEN_DEVICE void unpack(const Pack& p, float (&v)[4], const float*) {
  v[0] = float_of(p.x), v[1] = float_of(p.y), v[2] = float_of(p.z), v[3] = float_of(p.w);
}

KDGEN_DEVICE void unpack(const Pack& p, float (&v)[8], const BFloat16*) {
  const std::uint32_t words[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = float_of(words[i] << 16);
    v[2 * i + 1] = float_of(words[i] & 0xffff0000u);
  }
}

KDGEN_DEVICE void unpack(const Pack& p, float (&v)[8], const Half*) {
  const std::uint32_t words[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = load(Half{static_cast<std::uint16_t>(words[i])});
    v[2 * i + 1] = load(Half{static_cast<std::uint16_t>(words[i] >> 16)});
  }
}

// Two floats in one word, the first one in the low half.
template <class T>
KDGEN_DEVICE std::uint32_t paired(float low, float high) {
  T a, b;
  store(&a, low);
  store(&b, high);
  return static_cast<std::uint32_t>(a.bits) | static_cast<std::uint32_t>(b.bits) << 16;
}

template <class T>
KDGEN_DEVICE Pack packed(const float (&v)[8]) {
  return {paired<T>(v[0], v[1]), paired<T>(v[2], v[3]), paired<T>(v[4], v[5]),
          paired<T>(v[6], v[7])};
}

template <class T>
KDGEN_DEVICE Pack packed(const float (&v)[4]) {
  return {bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3])};
}

template <class T>
KDGEN_DEVICE void load_pack(const void* from, float (&v)[kPack<T>]) {
  unpack(*static_cast<const Pack*>(from), v, static_cast<const T*>(nullptr));
}

template <class T>
KDGEN_DEVICE void store_pack(void* to, const float (&v)[kPack<T>]) {
  *static_cast<Pack*>(to) = packed<T>(v);
}

// The sum over a warp, in every lane; always in the same order.
KDGEN_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) v += shuffled(v, lanes);
  return v;
}

// ---- launches -----------------------------------------------------------------------------------

constexpr std::size_t kPlainShared = 48 << 10;  // above this a kernel must ask

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), std::int64_t blocks, int threads,
            std::size_t shared, const Queue& queue, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(op) + ": too many images.");
  const OnDevice here(queue.device);
  if (shared > kPlainShared) {
    good(op, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)));
  }
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared, queue.stream>>>(
      arguments...);
#else
  emulation::run([&] { kernel(arguments...); }, static_cast<unsigned>(blocks),
                 static_cast<unsigned>(threads), shared);
#endif
  good(op, cudaGetLastError());
}

// `call` with a value of the storage type.
template <class Call>
void by_dtype(Dtype dtype, const Call& call) {
  switch (dtype) {
    case Dtype::float32:
      return call(float{});
    case Dtype::float16:
      return call(Half{});
    case Dtype::bfloat16:
      return call(BFloat16{});
  }
}

}  // namespace kdgen
