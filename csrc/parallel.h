// Loops over independent tasks. What a task computes never depends on how many threads there are.
#pragma once

#include <cstdint>

namespace kdgen {

template <class Task>
static inline void parallel_for(std::int64_t tasks, int threads, const Task& task) {
  if (threads > tasks) threads = static_cast<int>(tasks);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
  for (std::int64_t i = 0; i < tasks; ++i) task(i);
}

// Waking a thread costs about as much as this many elements.
static inline int useful_threads(std::int64_t elements, int threads) {
  return elements < 16384 ? 1 : threads;
}

static inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

}  // namespace kdgen
