#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void scale_input(const ScaleInput&);
KDGEN_END
