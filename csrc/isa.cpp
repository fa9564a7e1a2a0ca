#include "isa.h"

#include <stdexcept>

namespace kdgen {

#ifdef KDGEN_X86
namespace avx512 {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
#endif
namespace baseline {
extern const Table table;
}

namespace {

std::vector<const Table*> supported() {
  std::vector<const Table*> found;
#ifdef KDGEN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    found.push_back(&avx512::table);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx2::table);
  }
#endif
  found.push_back(&baseline::table);
  return found;
}

const Table*& current() {
  static const Table* chosen = supported().front();
  return chosen;
}

}  // namespace

const Table& table() { return *current(); }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Table* t : supported()) names.emplace_back(t->name);
  return names;
}

void select_isa(const std::string& name) {
  std::string known;
  for (const Table* t : supported()) {
    if (name == t->name) {
      current() = t;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(t->name);
  }
  throw std::invalid_argument("KDGEN_ISA: instruction set is '" + name + "'; expected one of " +
                              known + ", which this processor runs.");
}

}  // namespace kdgen
