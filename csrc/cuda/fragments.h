// Tensor-core products of a warp, and which lane holds what (PTX ISA, mma.m16n8k16 and ldmatrix).
//
// A product is c (16×8) += a (16×16) · b (16×8). With g = lane / 4 and t = lane % 4 a lane holds
//   a[0] rows g, columns 2t 2t+1       a[1] rows g + 8, the same columns
//   a[2] rows g, columns 2t+8 2t+9     a[3] rows g + 8, those columns
//   b[0] column g, rows 2t 2t+1        b[1] column g, rows 2t+8 2t+9
//   c[0] c[1] row g, columns 2t 2t+1   c[2] c[3] row g + 8, the same columns
// so that two neighbouring products c are, rounded and in pairs, the a of a next product.
#pragma once

#include "device.h"

namespace kdgen {

KDGEN_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
KDGEN_DEVICE int lane_row() { return lane() / 4; }
KDGEN_DEVICE int lane_column() { return lane() % 4 * 2; }

#ifdef __CUDACC__

template <class T>
KDGEN_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1);

template <>
__device__ __forceinline__ void multiply<Half>(float (&c)[4], const std::uint32_t (&a)[4],
                                               std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<BFloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8×8 matrices of 16-bit values; lane i brings the address of row i % 8 of matrix i / 8, and
// gets of each matrix row g, columns 2t 2t+1.
KDGEN_DEVICE void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of their transposes: column g, rows 2t 2t+1.
KDGEN_DEVICE void load_turned(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#endif

// A tile of rows of D 16-bit values. Packs of a row are permuted by its number, so that the eight
// rows of a matrix lie in different banks.
template <int D>
struct Tile {
  static constexpr int kPacks = D / 8;
  static_assert(kPacks % 8 == 0, "the permutation takes eight packs");

  Pack* base;

  __device__ __forceinline__ Pack* at(int row, int pack) const {
    return base + row * kPacks + (pack ^ (row & 7));
  }

  // Rows [row, row + 16), columns [16k, 16k + 16), as an a.
  __device__ __forceinline__ void rows(std::uint32_t (&a)[4], int row, int k) const {
    const int m = lane() / 8;
    load_matrices(a, at(row + m % 2 * 8 + lane() % 8, 2 * k + m / 2));
  }

  // The transpose of rows [row, row + 16), columns [16k, 16k + 16), as two b's side by side.
  __device__ __forceinline__ void columns(std::uint32_t (&b)[4], int row, int k) const {
    const int m = lane() / 8;
    load_matrices(b, at(row + m / 2 * 8 + lane() % 8, 2 * k + m % 2));
  }

  // Rows [row, row + 16), columns [8 pack, 8 pack + 16), as two b's side by side.
  __device__ __forceinline__ void turned(std::uint32_t (&b)[4], int row, int pack) const {
    const int m = lane() / 8;
    load_turned(b, at(row + m % 2 * 8 + lane() % 8, pack + m / 2));
  }
};

// c[j] += rows [row, row + 16) of `left` · (rows [8j, 8j + 8) of `right`)ᵀ, for j < N.
template <class T, int D, int N>
KDGEN_DEVICE void multiply_rows(float (&c)[N][4], const Tile<D>& left, int row,
                                const Tile<D>& right) {
#pragma unroll 4
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t a[4], b[4];
    left.rows(a, row, k);
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      right.columns(b, 8 * j, k);
      multiply<T>(c[j], a, b[0], b[1]);
      multiply<T>(c[j + 1], a, b[2], b[3]);
    }
  }
}

// c += p · `right`, for p (16 × 8N) in registers as products left it, c (16 × D).
template <class T, int D, int N>
KDGEN_DEVICE void multiply_held(float (&c)[D / 8][4], const float (&p)[N][4],
                                const Tile<D>& right) {
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    const std::uint32_t a[4] = {
        paired<T>(p[2 * k][0], p[2 * k][1]), paired<T>(p[2 * k][2], p[2 * k][3]),
        paired<T>(p[2 * k + 1][0], p[2 * k + 1][1]), paired<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      std::uint32_t b[4];
      right.turned(b, 16 * k, j);
      multiply<T>(c[j], a, b[0], b[1]);
      multiply<T>(c[j + 1], a, b[2], b[3]);
    }
  }
}

// The sum and the largest over the four lanes that share a row of c.
KDGEN_DEVICE float row_sum(float v) {
  v += shuffled(v, 1);
  return v + shuffled(v, 2);
}

KDGEN_DEVICE float row_top(float v) {
  v = fmaxf(v, shuffled(v, 1));
  return fmaxf(v, shuffled(v, 2));
}

}  // namespace kdgen
