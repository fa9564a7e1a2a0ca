// Intel's manual, volume 2: EVEX, VDPBF16PS, VCVTNEPS2BF16; volume 1, chapter 13: where XSAVE keeps
// which register. The kernel hands the handler the standard, not the compacted form.
#include "bf16_traps.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace sanitize {
namespace {

constexpr int kLanes = 16;
constexpr unsigned kFirst = 1, kUpper = 2, kZmmUpper = 6, kZmmHigh = 7;  // components of the state
constexpr std::int64_t kHeader = 512;

using Bits = std::uint32_t[kLanes];

std::atomic<long> done{0};
std::int64_t places[8];  // of the components, from the start of the saved state

void find_place(unsigned component) {
  unsigned size, at, c, d;
  __cpuid_count(0xd, component, size, at, c, d);
  places[component] = at;
}

// The saved registers. A component that nobody used is marked as absent, and reads as zero.
class Saved {
 public:
  explicit Saved(ucontext_t* context)
      : general_(context->uc_mcontext.gregs),
        state_(reinterpret_cast<char*>(context->uc_mcontext.fpregs)) {}

  greg_t& general(int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    return general_[order[number]];
  }
  greg_t& next() { return general_[REG_RIP]; }

  void read(int number, Bits& v) {
    std::memset(v, 0, sizeof v);
    parts(number, [&](unsigned component, const char* at, int first, int size) {
      if (present(component)) std::memcpy(reinterpret_cast<char*>(v) + first, at, bytes(size));
    });
  }

  void write(int number, const Bits& v) {
    parts(number, [&](unsigned component, char* at, int first, int size) {
      provide(component);
      std::memcpy(at, reinterpret_cast<const char*>(v) + first, bytes(size));
    });
  }

 private:
  static std::size_t bytes(int size) { return static_cast<std::size_t>(size); }

  // f(component, place, first byte of the register there, bytes).
  template <class F>
  void parts(int number, const F& f) {
    if (number >= 16) return f(kZmmHigh, state_ + places[kZmmHigh] + 64 * (number - 16), 0, 64);
    f(kFirst, state_ + 160 + 16 * number, 0, 16);
    f(kUpper, state_ + places[kUpper] + 16 * number, 16, 16);
    f(kZmmUpper, state_ + places[kZmmUpper] + 32 * number, 32, 32);
  }

  std::uint64_t used() const {
    std::uint64_t mask;
    std::memcpy(&mask, state_ + kHeader, sizeof mask);
    return mask;
  }
  bool present(unsigned component) const { return used() >> component & 1; }

  void provide(unsigned component) {
    if (present(component)) return;
    constexpr std::size_t sizes[8] = {0, 256, 256, 0, 0, 0, 512, 1024};
    std::memset(state_ + (component == kFirst ? 160 : places[component]), 0, sizes[component]);
    const std::uint64_t mask = used() | std::uint64_t{1} << component;
    std::memcpy(state_ + kHeader, &mask, sizeof mask);
  }

  greg_t* general_;
  char* state_;
};

// An EVEX instruction of map 0F38 with 512 bits, no mask: its registers, and its last operand.
struct Instruction {
  unsigned opcode, prefix;  // prefix: 2 for F3, 3 for F2
  int to, from;
  bool memory, broadcast;
  int other;              // a register …
  std::uint64_t address;  // … or memory
  int length;
};

bool decode(const std::uint8_t* code, Saved& saved, Instruction* found) {
  if (code[0] != 0x62 || (code[1] & 0x0f) != 2) return false;  // EVEX, map 0F38
  const std::uint8_t p0 = code[1], p1 = code[2], p2 = code[3], modrm = code[5];
  if ((p1 & 0x80) || (p2 & 0x60) != 0x40 || (p2 & 0x87)) return false;  // W, length, mask
  const int r = !(p0 & 0x80), x = !(p0 & 0x40), b = !(p0 & 0x20), high = !(p0 & 0x10);
  found->opcode = code[4];
  found->prefix = p1 & 3;
  found->broadcast = p2 & 0x10;
  found->to = (modrm >> 3 & 7) + 8 * r + 16 * high;
  found->from = (~p1 >> 3 & 15) + 16 * !(p2 & 0x08);
  const int mode = modrm >> 6, low = modrm & 7;
  found->memory = mode != 3;
  found->length = 6;
  if (!found->memory) {
    found->other = low + 8 * b + 16 * x;
    return true;
  }
  const std::uint8_t* rest = code + 6;
  std::uint64_t address = 0;
  bool based = true;
  if (low == 4) {
    const std::uint8_t sib = *rest++;
    const int index = (sib >> 3 & 7) + 8 * x, base = (sib & 7) + 8 * b;
    based = !((sib & 7) == 5 && mode == 0);
    if (based) address += static_cast<std::uint64_t>(saved.general(base));
    if (index != 4) address += static_cast<std::uint64_t>(saved.general(index)) << (sib >> 6);
  } else if (low == 5 && mode == 0) {
    return false;  // relative to the instruction: only constants are, and there are none here
  } else {
    address += static_cast<std::uint64_t>(saved.general(low + 8 * b));
  }
  if (mode == 1) {  // scaled by what is read
    const auto offset = static_cast<std::int8_t>(*rest++);
    address += static_cast<std::uint64_t>(std::int64_t{offset} * (found->broadcast ? 4 : 64));
  } else if (mode == 2 || !based) {
    std::int32_t offset;
    std::memcpy(&offset, rest, 4);
    rest += 4;
    address += static_cast<std::uint64_t>(std::int64_t{offset});
  }
  found->address = address;
  found->length = static_cast<int>(rest - code);
  return true;
}

void operand(const Instruction& i, Saved& saved, Bits& v) {
  if (!i.memory) return saved.read(i.other, v);
  const char* at = reinterpret_cast<const char*>(i.address);
  for (int l = 0; l < kLanes; ++l) std::memcpy(&v[l], at + (i.broadcast ? 0 : 4 * l), 4);
}

// Numbers too small to be normal are zero, on the way in and out.
float flushed(std::uint32_t bits) {
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits;
}

// The odd products first, then the even ones; each is added with one rounding.
void products(const Instruction& i, Saved& saved) {
  Bits sum, a, b;
  saved.read(i.to, sum);
  saved.read(i.from, a);
  operand(i, saved, b);
  for (int l = 0; l < kLanes; ++l) {
    float t = flushed(sum[l]);
    t = flushed(
        bits_of(__builtin_fmaf(flushed(a[l] & 0xffff0000u), flushed(b[l] & 0xffff0000u), t)));
    t = __builtin_fmaf(flushed(a[l] << 16), flushed(b[l] << 16), t);
    sum[l] = bits_of(t);
  }
  saved.write(i.to, sum);
}

std::uint32_t nearest_even(std::uint32_t u) {
  if ((u & 0x7f800000u) == 0) return u >> 16 & 0x8000u;
  if ((u & 0x7fffffffu) > 0x7f800000u) return u >> 16 | 0x40u;
  return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

void convert(const Instruction& i, Saved& saved) {
  Bits from, to = {};
  operand(i, saved, from);
  for (int l = 0; l < kLanes; ++l) to[l / 2] |= nearest_even(from[l]) << 16 * (l % 2);
  saved.write(i.to, to);
}

void trapped(int, siginfo_t*, void* context) {
  Saved saved(static_cast<ucontext_t*>(context));
  Instruction i;
  const auto* code = reinterpret_cast<const std::uint8_t*>(saved.next());
  if (!decode(code, saved, &i) || i.prefix != 2 || (i.opcode != 0x52 && i.opcode != 0x72)) {
    static const char said[] = "sanitize: an instruction that this processor does not have\n";
    (void)!write(2, said, sizeof said - 1);
    _exit(1);
  }
  i.opcode == 0x52 ? products(i, saved) : convert(i, saved);
  saved.next() += i.length;
  ++done;
}

bool has_all_but_bf16() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

bool provide_bf16() {
  if (!has_all_but_bf16() || __builtin_cpu_supports("avx512bf16")) return has_all_but_bf16();
  find_place(kUpper), find_place(kZmmUpper), find_place(kZmmHigh);
  struct sigaction action = {};
  action.sa_sigaction = trapped;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

long done_by_hand() { return done; }

}  // namespace sanitize

#else

namespace sanitize {

bool provide_bf16() { return false; }

long done_by_hand() { return 0; }

}  // namespace sanitize

#endif
