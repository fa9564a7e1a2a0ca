#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
std::int64_t forward_scratch(const GroupNormForward&);
std::int64_t backward_scratch(const GroupNormBackward&);
void group_norm_silu_forward(const GroupNormForward&, char* scratch);
void group_norm_silu_backward(const GroupNormBackward&, char* scratch);
KDGEN_END
