// What the checks are made of: random numbers, arrays of an op's storage type, comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/args.h"
#include "../../csrc/math.h"

namespace sanitize {

using kdgen::Dtype;
using Int = std::int64_t;

// splitmix64; Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  Int between(Int least, Int most) {
    return least + static_cast<Int>(next() % static_cast<std::uint64_t>(most - least + 1));
  }
  bool coin() { return next() & 1u; }
  double value() { return static_cast<double>(next() >> 11) * 0x1p-51 - 2.0; }  // -2 … 2
  Dtype dtype() { return static_cast<Dtype>(between(0, 2)); }
  template <class T>
  T one_of(std::initializer_list<T> all) {
    return all.begin()[between(0, static_cast<Int>(all.size()) - 1)];
  }

 private:
  std::uint64_t state_;
};

inline double unit(Dtype dtype) {  // relative error of a rounding
  return dtype == Dtype::float32 ? 0x1p-24 : dtype == Dtype::float16 ? 0x1p-11 : 0x1p-8;
}

// An allocation of its own, not a byte larger than its values: what lies beyond is seen.
class Array {
 public:
  Array() : Array(Dtype::float32, 0) {}
  Array(Dtype dtype, Int count)
      : dtype_(dtype), bytes_(static_cast<std::size_t>(count) * (dtype == Dtype::float32 ? 4 : 2)) {
    for (Int i = 0; i < count; ++i) set(i, std::nan(""));  // until it is written
  }
  Array(Dtype dtype, Int count, Random& random) : Array(dtype, count) {
    for (Int i = 0; i < count; ++i) set(i, random.value());
  }

  void* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
  float* floats() { return static_cast<float*>(data()); }
  Int size() const { return static_cast<Int>(bytes_.size()) / (dtype_ == Dtype::float32 ? 4 : 2); }

  double operator[](Int i) const {
    switch (dtype_) {
      case Dtype::float32:
        return values<float>()[i];
      case Dtype::float16:
        return kdgen::load(values<kdgen::Half>()[i]);
      case Dtype::bfloat16:
        return kdgen::load(values<kdgen::BFloat16>()[i]);
    }
    return 0;
  }
  void set(Int i, double v) {
    const float f = static_cast<float>(v);
    switch (dtype_) {
      case Dtype::float32:
        return kdgen::store(const_cast<float*>(values<float>()) + i, f);
      case Dtype::float16:
        return kdgen::store(const_cast<kdgen::Half*>(values<kdgen::Half>()) + i, f);
      case Dtype::bfloat16:
        return kdgen::store(const_cast<kdgen::BFloat16*>(values<kdgen::BFloat16>()) + i, f);
    }
  }

 private:
  template <class T>
  const T* values() const {
    return reinterpret_cast<const T*>(bytes_.data());
  }

  Dtype dtype_;
  std::vector<char> bytes_;
};

// Throws unless |got - want| <= allowed; NaN is never allowed.
inline void expect(const std::string& what, double got, double want, double allowed) {
  if (std::fabs(got - want) <= allowed) return;
  throw std::runtime_error(what + ": " + std::to_string(got) + "; expected " +
                           std::to_string(want) + " within " + std::to_string(allowed));
}

// Everything the ops of csrc do, and what the engine does, on random small shapes.
void check_ops(Random& random);
void check_norms(Random& random);
void check_programs(Random& random);

}  // namespace sanitize
