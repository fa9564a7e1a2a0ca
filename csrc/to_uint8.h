#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
void to_uint8(const ToUint8&);
KDGEN_END
