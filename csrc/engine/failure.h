// The first exception of many threads, which must not leave a parallel loop.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>

namespace kdgen::engine {

class Failure {
 public:
  // Does it, unless something failed before.
  template <class Work>
  void attempt(const Work& work) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> alone(keeping_);
      if (!first_) first_ = std::current_exception();
      failed_ = true;
    }
  }

  // After the loop.
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::mutex keeping_;
  std::exception_ptr first_;
};

}  // namespace kdgen::engine
