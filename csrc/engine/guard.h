// Bands around a buffer, filled with a mark that no step may touch; for tests. Under the address
// sanitizer a step can touch nothing at all but what it is given.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace kdgen::engine {

constexpr std::int64_t kBand = 256;  // bytes on either side
constexpr unsigned char kMark = 0xa5;

inline void mark(char* band, std::int64_t bytes) {
  std::memset(band, kMark, static_cast<std::size_t>(bytes));
}

inline bool marked(const char* band, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; ++i) {
    if (static_cast<unsigned char>(band[i]) != kMark) return false;
  }
  return true;
}

inline void close([[maybe_unused]] const char* from, [[maybe_unused]] std::int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(from, static_cast<std::size_t>(bytes));
#endif
}

inline void open([[maybe_unused]] const char* from, [[maybe_unused]] std::int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(from, static_cast<std::size_t>(bytes));
#endif
}

}  // namespace kdgen::engine
