// This instruction set's entry points, in one constant.
#include "table.h"

#include "bias_residual.h"
#include "chain_step.h"
#include "ddim_update.h"
#include "group_norm_silu.h"
#include "philox.h"
#include "scale_input.h"
#include "to_uint8.h"

#define KDGEN_TEXT_(x) #x
#define KDGEN_TEXT(x) KDGEN_TEXT_(x)

KDGEN_BEGIN
extern const Table table = {
    KDGEN_TEXT(KDGEN_TARGET), forward_scratch, backward_scratch, group_norm_silu_forward,
    group_norm_silu_backward, ddim_update,     to_uint8,         bias_residual,
    bias_residual_backward,   chain_step,      scale_input,      philox};
KDGEN_END
