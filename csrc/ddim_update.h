#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void ddim_update(const DdimUpdate&);
KDGEN_END
