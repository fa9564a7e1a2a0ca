"""The contestants by name: who runs it, in which arithmetic, and which packages that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """`runner` is a module of `runners`, `mode` means something to it; `dtype` (of the products,
    as asked for) chooses the roof."""

    name: str
    title: str
    runner: str
    dtype: str  # "fp32", "bf16", "int8"
    mode: str = ""
    packages: tuple[str, ...] = ()

    @property
    def made(self) -> bool:
        """Whether its runner prepares something once before."""
        return self.runner in _MADE

    @property
    def ours(self) -> bool:
        return self.runner == "accelerated"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of the products that it may choose."""
        return ("fp32", "bf16", "int8") if self.ours else (self.dtype,)


_MADE = ("packaged", "onnx_runtime", "open_vino")
_EXPORT = ("onnx", "onnxscript", "onnxruntime")
VARIANTS = (
    Variant("eager-fp32", "torch eager, fp32", "eager", "fp32"),
    Variant("eager-bf16", "torch eager, bf16", "eager", "bf16"),
    Variant("compile-fp32", "torch.compile, fp32", "compiled", "fp32"),
    Variant("compile-bf16", "torch.compile, bf16", "compiled", "bf16"),
    Variant("autotune-fp32", "torch.compile max-autotune, fp32", "compiled", "fp32", "autotune"),
    Variant("autotune-bf16", "torch.compile max-autotune, bf16", "compiled", "bf16", "autotune"),
    Variant("aot-fp32", "AOTInductor, fp32", "packaged", "fp32"),
    Variant("aot-bf16", "AOTInductor, bf16", "packaged", "bf16"),
    Variant("onnx-fp32", "ONNX Runtime, fp32", "onnx_runtime", "fp32", packages=_EXPORT),
    Variant("onnx-int8", "ONNX Runtime, int8", "onnx_runtime", "int8", packages=_EXPORT),
    Variant("openvino-fp32", "OpenVINO, fp32", "open_vino", "fp32", packages=("openvino",)),
    Variant("openvino-bf16", "OpenVINO, bf16", "open_vino", "bf16", packages=("openvino",)),
    Variant("openvino-int8", "OpenVINO, int8", "open_vino", "int8", packages=("openvino", "nncf")),
    Variant("diffusers-fp32", "diffusers, fp32", "diffusers_unet", "fp32", packages=("diffusers",)),
    Variant("kdgen-exact", "kdgen exact", "accelerated", "fp32", "exact"),
    Variant("kdgen-fp32", "kdgen fp32", "accelerated", "fp32", "fp32"),
    Variant("kdgen-bf16", "kdgen bf16", "accelerated", "bf16", "bf16"),
    Variant("kdgen-fastest", "kdgen fastest", "accelerated", "bf16", "fastest"),
)
BY_NAME = {v.name: v for v in VARIANTS}
# Everything that inductor makes; "the best torch.compile" is the fastest of them.
INDUCTOR = tuple(v.name for v in VARIANTS if v.runner in ("compiled", "packaged"))
EAGER = tuple(v.name for v in VARIANTS if v.runner == "eager")


def chosen(names: Sequence[str]) -> list[Variant]:
    """By name or by the part before the dash ("openvino", "kdgen"), in the table's order; all for
    none. ValueError for an unknown name."""
    families = {v.name.partition("-")[0] for v in VARIANTS}
    for name in names:
        if name not in BY_NAME and name not in families:
            raise ValueError(
                f"cpu_peers: variant is {name!r}; expected some of {', '.join(sorted(families))}, "
                f"or of {', '.join(BY_NAME)}. Name those."
            )
    return [
        v for v in VARIANTS if not names or v.name in names or v.name.partition("-")[0] in names
    ]
