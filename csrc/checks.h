// What bindings can check of raw addresses and codes. What is wrong is a std::invalid_argument,
// which pybind11 hands to Python as a ValueError. For bindings, which are compiled once (math.h).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "args.h"

namespace kdgen {

using Address = std::uint64_t;  // of a tensor: data_ptr()

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(a));
}

inline void require(bool good, const char* op, const std::string& wrong) {
  if (!good) throw std::invalid_argument(std::string(op) + ": " + wrong);
}

inline void require_pointers(const char* op, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) require(p, op, "an address is 0; expected a tensor's.");
}

inline Dtype dtype_of(const char* op, int code) {
  require(
      code >= 0 && code <= 2, op,
      "dtype is " + std::to_string(code) + "; expected 0 (float32), 1 (float16) or 2 (bfloat16).");
  return static_cast<Dtype>(code);
}

inline int threads_of(const char* op, int threads) {
  require(threads >= 1, op, "threads is " + std::to_string(threads) + "; expected at least 1.");
  return threads;
}

}  // namespace kdgen
