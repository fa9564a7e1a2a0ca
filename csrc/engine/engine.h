// One instruction set's steps, by the descriptions in step.h.
#pragma once

#include "step.h"

namespace kdgen::engine {

struct Engine {
  const char* name;
  bool fast_bf16;  // a product of bfloat16 pairs is one instruction
  bool fast_int8;  // and one of four bytes
  Step* (*convolve)(const Convolve&);
  Step* (*moments)(const Moments&);
  Step* (*normalise)(const Normalise&);
  Step* (*attend)(const Attend&);
  Step* (*resample)(const Resample&);
  Step* (*combine)(const Combine&);
  Step* (*input)(const Ends&);
  Step* (*output)(const Ends&);
};

}  // namespace kdgen::engine
