// How many floats a register of this instruction set holds.
#pragma once

#include "target.h"

KDGEN_BEGIN

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

KDGEN_END
