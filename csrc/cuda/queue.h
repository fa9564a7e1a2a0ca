// Where a kernel runs, and what CUDA says about it. For the host alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../args.h"

namespace kdgen {

constexpr int kAligned = 16;            // bytes; what the widest load and store want
constexpr int kMostShared = 163 << 10;  // bytes of shared memory that a block may have on sm_80

// Where a kernel runs: the device and the stream, as torch names them.
struct Queue {
  int device;
  cudaStream_t stream;
};

static inline void good(const char* what, cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": CUDA says \"" + cudaGetErrorString(error) +
                             "\".");
  }
}

// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    good("cudaGetDevice", cudaGetDevice(&before_));
    if (before_ != device_) good("cudaSetDevice", cudaSetDevice(device_));
  }
  ~OnDevice() {
    if (before_ != device_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, before_ = 0;
};

}  // namespace kdgen
