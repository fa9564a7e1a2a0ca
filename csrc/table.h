#pragma once

#include "args.h"
#include "target.h"

KDGEN_BEGIN
extern const Table table;
KDGEN_END
