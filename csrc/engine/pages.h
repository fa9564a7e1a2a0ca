// Memory of a network: large, aligned, and in huge pages where the system has them, because the
// panels of weights are read in strides that would miss the TLB at every step.
#pragma once

#include <cstdint>

#include "step.h"

namespace kdgen::engine {

class Pages {
 public:
  Pages() = default;
  // Aligned to a cache line at least; what is in it is not defined. Throws std::bad_alloc.
  explicit Pages(std::int64_t bytes);
  ~Pages();
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  template <class T>
  KDGEN_MEMBER T* as() const {
    return reinterpret_cast<T*>(start_);
  }
  KDGEN_MEMBER std::int64_t bytes() const { return bytes_; }

 private:
  char* start_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace kdgen::engine
