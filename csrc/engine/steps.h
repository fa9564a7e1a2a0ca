// This instruction set's steps.
#pragma once

#include "../parallel.h"
#include "../target.h"
#include "step.h"

KDGEN_BEGIN
namespace engine {

using namespace ::kdgen::engine;

Step* convolve(const Convolve& p);
Step* winograd(const Convolve& p);
Step* direct(const Convolve& p);
Step* moments(const Moments& p);
Step* normalise(const Normalise& p);
Step* attend(const Attend& p);
Step* resample(const Resample& p);
Step* combine(const Combine& p);
Step* input(const Ends& p);
Step* output(const Ends& p);

}  // namespace engine
KDGEN_END
