#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void chain_step(const ChainStep&);
KDGEN_END
