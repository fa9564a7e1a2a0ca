#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void philox(const Philox&);
KDGEN_END
