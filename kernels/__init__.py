"""Floor 0: arithmetic. Each op is one plain-torch definition and the faster versions of it."""

from .attention import attention
from .bias_residual import bias_residual
from .chain_step import chain_step, chain_step_uint8
from .ddim_update import ddim_update, ddim_update_uint8
from .dispatch import Backend, Example, Op, explain, retry, use
from .fallback import Fallback, Unavailable, fallbacks, require
from .group_norm_silu import group_norm_silu
from .philox import philox_normal, philox_uint32, philox_uniform
from .scale_input import scale_input
from .to_uint8 import to_uint8

OPS = (
    group_norm_silu,
    attention,
    bias_residual,
    scale_input,
    ddim_update,
    ddim_update_uint8,
    chain_step,
    chain_step_uint8,
    to_uint8,
    philox_uint32,
    philox_uniform,
    philox_normal,
)

__all__ = [
    "OPS",
    "Backend",
    "Example",
    "Fallback",
    "Op",
    "Unavailable",
    "attention",
    "bias_residual",
    "chain_step",
    "chain_step_uint8",
    "ddim_update",
    "ddim_update_uint8",
    "explain",
    "fallbacks",
    "group_norm_silu",
    "philox_normal",
    "philox_uint32",
    "philox_uniform",
    "require",
    "retry",
    "scale_input",
    "to_uint8",
    "use",
]
