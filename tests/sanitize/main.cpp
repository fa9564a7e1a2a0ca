// Random small work for every op on every instruction set of this processor, to be built with
// sanitizers: they end the process at the first bad access or undefined operation, a wrong value
// does here.
//
//   sanitize [rounds [seed]]
#include <cstdlib>

#include "../../csrc/isa.h"
#include "array.h"
#include "bf16_traps.h"

int main(int count, char** arguments) {
  const long rounds = count > 1 ? std::strtol(arguments[1], nullptr, 10) : 40;
  const long seed = count > 2 ? std::strtol(arguments[2], nullptr, 10) : 0;
  if (!sanitize::provide_bf16()) std::printf("no AVX-512 with bfloat16 here\n");
  for (const std::string& isa : kdgen::supported_isas()) {
    kdgen::select_isa(isa);
    const long before = sanitize::done_by_hand();
    for (long round = 0; round < rounds; ++round) {
      // The same work on every instruction set.
      sanitize::Random random(static_cast<std::uint64_t>(seed + round));
      try {
        sanitize::check_ops(random);
        sanitize::check_norms(random);
        for (int k = 0; k < 4; ++k) sanitize::check_programs(random);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "sanitize: %s, seed %ld: %s\n", isa.c_str(), seed + round,
                     error.what());
        return 1;
      }
    }
    std::printf("%s: %ld rounds", isa.c_str(), rounds);
    const long by_hand = sanitize::done_by_hand() - before;
    std::printf(by_hand ? ", %ld instructions done by hand\n" : "\n", by_hand);
  }
  return 0;
}
