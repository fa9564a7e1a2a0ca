#include "isa.h"

#include <stdexcept>

namespace kdgen {

#ifdef KDGEN_X86
namespace avx512_bf16 {
namespace engine {
extern const ::kdgen::engine::Engine table;
}
}  // namespace avx512_bf16
namespace avx512_vnni {
namespace engine {
::kdgen::engine::Step* convolve(const ::kdgen::engine::Convolve& p);
}
}  // namespace avx512_vnni
namespace avx512 {
extern const Table table;
namespace engine {
extern const ::kdgen::engine::Engine table;
}
}  // namespace avx512
namespace avx2 {
extern const Table table;
namespace engine {
extern const ::kdgen::engine::Engine table;
}
}  // namespace avx2
#endif
namespace baseline {
extern const Table table;
namespace engine {
extern const ::kdgen::engine::Engine table;
}
}  // namespace baseline

namespace {

// A program of tests may do by hand what the processor lacks: tests/sanitize/bf16_traps.h.
#ifdef KDGEN_BF16_BY_HAND
constexpr bool kByHand = true;
#else
constexpr bool kByHand = false;
#endif

// The engine's products of bfloat16 and of bytes have instructions of their own; to the ops they
// mean nothing.
struct Isa {
  const engine::Engine* engine;
  const Table* table;
};

#ifdef KDGEN_X86
// Products of bytes are all that tells this set from avx512, and only convolutions have them.
const engine::Engine& with_vnni() {
  static const engine::Engine engine = [] {
    engine::Engine made = avx512::engine::table;
    made.name = "avx512_vnni";
    made.fast_int8 = true;
    made.convolve = avx512_vnni::engine::convolve;
    return made;
  }();
  return engine;
}
#endif

std::vector<Isa> supported() {
  std::vector<Isa> found;
#ifdef KDGEN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    if (vnni && (kByHand || __builtin_cpu_supports("avx512bf16"))) {
      found.push_back({&avx512_bf16::engine::table, &avx512::table});
    }
    if (vnni) found.push_back({&with_vnni(), &avx512::table});
    found.push_back({&avx512::engine::table, &avx512::table});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({&avx2::engine::table, &avx2::table});
  }
#endif
  found.push_back({&baseline::engine::table, &baseline::table});
  return found;
}

Isa& current() {
  static Isa chosen = supported().front();
  return chosen;
}

Isa named(const std::string& name) {
  std::string known;
  for (const Isa& isa : supported()) {
    if (name == isa.engine->name) return isa;
    known += (known.empty() ? "" : ", ") + std::string(isa.engine->name);
  }
  throw std::invalid_argument("KDGEN_ISA: instruction set is '" + name + "'; expected one of " +
                              known + ", which this processor runs.");
}

}  // namespace

const Table& table() { return *current().table; }

std::string isa() { return current().engine->name; }

const engine::Engine& engine_of(const std::string& name) {
  return *(name.empty() ? current() : named(name)).engine;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : supported()) names.emplace_back(isa.engine->name);
  return names;
}

void select_isa(const std::string& name) { current() = named(name); }

}  // namespace kdgen
