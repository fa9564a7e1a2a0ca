"""Floor 0: arithmetic. Each op is one plain-torch definition and the faster versions of it."""

from .attention import attention
from .ddim_update import ddim_update, ddim_update_uint8
from .dispatch import Backend, Example, Op, explain, use
from .group_norm_silu import group_norm_silu
from .philox import philox_normal, philox_uint32, philox_uniform
from .to_uint8 import to_uint8

OPS = (
    group_norm_silu,
    attention,
    ddim_update,
    ddim_update_uint8,
    to_uint8,
    philox_uint32,
    philox_uniform,
    philox_normal,
)

__all__ = [
    "OPS",
    "Backend",
    "Example",
    "Op",
    "attention",
    "ddim_update",
    "ddim_update_uint8",
    "explain",
    "group_norm_silu",
    "philox_normal",
    "philox_uint32",
    "philox_uniform",
    "to_uint8",
    "use",
]
