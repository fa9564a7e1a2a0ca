// CUDA on a CPU, for tests: every thread of a block is a fiber, blocks run one after another.
//
// A fiber runs until it meets a barrier, a shuffle or a product of its warp; then the next one goes
// on. In which order is a test's choice (`emulation::order`): a kernel that forgot a barrier gives
// other numbers in another order. Shared memory starts as not-a-number, and a copy in the
// background arrives when it is waited for, not before.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct uint3 {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};

struct alignas(8) uint2 {
  std::uint32_t x, y;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

inline uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 64 << 10;
constexpr char kPattern = static_cast<char>(0xff);  // shared memory before a block: not-a-number
constexpr std::size_t kLimit = 227 << 10;           // shared memory a block may have on sm_90

struct Barrier {
  int expected = 0, arrived = 0, generation = 0;
};

struct Copy {
  void* to;
  const void* from;
  bool live;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack{new char[kStack]};
  unsigned thread = 0;
  bool begun = false, done = false;
  const Barrier* waits = nullptr;
  int generation = 0, exchanges = 0;
  std::vector<std::vector<Copy>> copies;
};

// What the lanes of a warp show one another; two rows, so that one barrier an exchange is enough.
struct Warp {
  Barrier barrier;
  std::uint64_t shown[2][kWarp][6];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<char> memory;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler;
  jmp_buf back;
};

inline Block* block = nullptr;
inline Fiber* current = nullptr;
inline unsigned order = 0;  // 0 rising, 1 falling, else a shuffle

inline void leave() {
  if (!_setjmp(current->here)) _longjmp(block->back, 1);
}

inline void wait(Barrier& barrier) {
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current->waits = &barrier;
  current->generation = barrier.generation;
  leave();
  current->waits = nullptr;
}

inline Warp& warp() { return block->warps[current->thread / kWarp]; }
inline int lane() { return static_cast<int>(current->thread % kWarp); }

// Shows up to six values to the warp; afterwards `shown` of every lane may be read.
inline std::uint64_t (*exchange(const std::uint64_t* values, int count))[6] {
  Warp& w = warp();
  auto row = w.shown[current->exchanges++ & 1];
  std::memcpy(row[lane()], values, sizeof(std::uint64_t) * static_cast<std::size_t>(count));
  wait(w.barrier);
  return row;
}

inline void begin() {
  Fiber* self = current;
  (*block->body)();
  self->done = true;
  // Threads that left count as having arrived.
  for (Barrier* barrier : {&block->barrier, &block->warps[self->thread / kWarp].barrier}) {
    if (--barrier->expected == barrier->arrived && barrier->arrived) {
      barrier->arrived = 0;
      ++barrier->generation;
    }
  }
  _longjmp(block->back, 1);
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
  if (_setjmp(block->back)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, begin, 0);
  setcontext(&fiber.start);
}

inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s in block %u\n", what, blockIdx.x);
  std::abort();
}

// From the start of the memory to that of a block's, which is aligned.
inline std::size_t offset(const Block& b) {
  return (128 - reinterpret_cast<std::uintptr_t>(b.memory.data()) % 128) % 128;
}

inline std::vector<unsigned> turns(unsigned threads) {
  std::vector<unsigned> found(threads);
  for (unsigned t = 0; t < threads; ++t) found[t] = order == 1 ? threads - 1 - t : t;
  if (order > 1) {
    std::mt19937 random(order);
    for (unsigned t = threads; t > 1; --t) std::swap(found[t - 1], found[random() % t]);
  }
  return found;
}

inline void run_block(Block& b, unsigned threads, std::size_t shared,
                      const std::vector<unsigned>& turn) {
  b.barrier = {static_cast<int>(threads), 0, 0};
  b.memory.assign(shared + 256, kPattern);
  for (std::size_t w = 0; w < b.warps.size(); ++w) {
    const unsigned left = threads - static_cast<unsigned>(w) * kWarp;
    b.warps[w].barrier = {static_cast<int>(left < kWarp ? left : kWarp), 0, 0};
  }
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& f = b.fibers[t];
    f.thread = t, f.begun = f.done = false, f.waits = nullptr, f.exchanges = 0;
    f.copies.assign(1, {});
  }
  for (unsigned left = threads; left;) {
    bool moved = false;
    for (unsigned t : turn) {
      Fiber& f = b.fibers[t];
      if (f.done || (f.waits && f.waits->generation == f.generation)) continue;
      resume(f);
      moved = true;
      left -= f.done;
    }
    if (!moved) fail("threads wait for one another for ever");
  }
  for (std::size_t i = shared; i < b.memory.size() - offset(b); ++i) {
    if (b.memory[offset(b) + i] != kPattern) fail("a write beyond shared memory");
  }
}

inline void run(const std::function<void()>& body, unsigned blocks, unsigned threads,
                std::size_t shared) {
  if (shared > kLimit || threads > 1024) fail("more than a block may have");
  Block b;
  b.fibers = std::vector<Fiber>(threads);
  b.warps = std::vector<Warp>((threads + kWarp - 1) / kWarp);
  b.body = &body;
  block = &b;
  blockDim = {threads, 1, 1}, gridDim = {blocks, 1, 1};
  const std::vector<unsigned> turn = turns(threads);
  for (unsigned i = 0; i < blocks; ++i) {
    blockIdx = {i, 0, 0};
    run_block(b, threads, shared, turn);
  }
  block = nullptr;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::block->barrier); }

inline void __syncwarp() { emulation::wait(emulation::warp().barrier); }

namespace kdgen {

inline char* shared_memory() {
  return emulation::block->memory.data() + emulation::offset(*emulation::block);
}

inline void copy_behind(void* shared, const void* global, bool live = true) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 ||
      (live && reinterpret_cast<std::uintptr_t>(global) % 16)) {
    emulation::fail("a copy of 16 bytes that is not aligned");
  }
  emulation::current->copies.back().push_back({shared, global, live});
}

inline void copies_end() { emulation::current->copies.emplace_back(); }

template <int Left>
inline void copies_wait() {
  auto& groups = emulation::current->copies;
  while (static_cast<int>(groups.size()) - 1 > Left) {
    for (const emulation::Copy& c : groups.front()) {
      if (c.live) {
        std::memcpy(c.to, c.from, 16);
      } else {
        std::memset(c.to, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

template <class T>
inline T shuffled(T v, int lanes) {
  static_assert(sizeof(T) == 4);
  std::uint64_t word = 0;
  std::memcpy(&word, &v, 4);
  auto shown = emulation::exchange(&word, 1);
  T other;
  std::memcpy(&other, &shown[emulation::lane() ^ lanes][0], 4);
  return other;
}

// A 16-bit value as a double; the kernels' own conversions are tested elsewhere.
template <class T>
double value_of(std::uint32_t pair, int which);

// Every lane shows its a and b, then computes its own four of the product.
template <class T>
inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
  const std::uint64_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  auto shown = emulation::exchange(mine, 6);
  const int g = emulation::lane() / 4, t = emulation::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const std::uint64_t* from = shown[row % 8 * 4 + k % 8 / 2];
      const std::uint64_t* beside = shown[column * 4 + k % 8 / 2];
      sum += value_of<T>(static_cast<std::uint32_t>(from[row / 8 + k / 8 * 2]), k % 2) *
             value_of<T>(static_cast<std::uint32_t>(beside[4 + k / 8]), k % 2);
    }
    c[i] = static_cast<float>(sum);
  }
}

// The row of matrix m that lane i's address stands for, as lanes see it after showing them.
inline const std::uint16_t* row_shown(std::uint64_t (*shown)[6], int matrix, int row) {
  return reinterpret_cast<const std::uint16_t*>(
      static_cast<std::uintptr_t>(shown[matrix * 8 + row][0]));
}

inline auto show_row(const void* row) {
  const std::uint64_t mine = reinterpret_cast<std::uintptr_t>(row);
  if (mine % 16) emulation::fail("a row of a matrix that is not aligned");
  return emulation::exchange(&mine, 1);
}

inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  auto shown = show_row(row);
  const int g = emulation::lane() / 4, t = emulation::lane() % 4;
  for (int m = 0; m < 4; ++m) std::memcpy(&r[m], row_shown(shown, m, g) + 2 * t, 4);
}

inline void load_turned(std::uint32_t (&r)[4], const void* row) {
  auto shown = show_row(row);
  const int g = emulation::lane() / 4, t = emulation::lane() % 4;
  for (int m = 0; m < 4; ++m) {
    r[m] = row_shown(shown, m, 2 * t)[g] |
           static_cast<std::uint32_t>(row_shown(shown, m, 2 * t + 1)[g]) << 16;
  }
}

}  // namespace kdgen

#include "../../csrc/math.h"

namespace kdgen {

template <class T>
inline double value_of(std::uint32_t pair, int which) {
  return load(T{static_cast<std::uint16_t>(pair >> 16 * which)});
}

}  // namespace kdgen
