#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void bias_residual(const BiasResidual&);
void bias_residual_backward(const BiasResidualBackward&);
KDGEN_END
