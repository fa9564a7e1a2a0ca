// The two instructions of AVX-512 BF16 that the engine uses, for processors with AVX-512 but
// without them: each ends in a trap, whose handler does what the instruction would have done to the
// registers that were saved. So the machine code of that instruction set runs here too, slowly.
#pragma once

namespace sanitize {

// From here on, if they are missing and can be helped. Returns whether the instructions now work.
bool provide_bf16();

// How many were done by hand.
long done_by_hand();

}  // namespace sanitize
