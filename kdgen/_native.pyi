"""The compiled CPU kernels. Tensors are addresses; `kdgen.kernels.native` is the way in."""

version: str
openmp: bool

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def group_norm_silu_forward(
    x: int,
    weight: int,
    bias: int,
    scale: int,
    shift: int,
    add: int,
    more: int,
    y: int,
    mean: int,
    rstd: int,
    n: int,
    channels: int,
    own: int,
    size: int,
    groups: int,
    eps: float,
    act: bool,
    channels_last: bool,
    add_per_image: bool,
    dtype: int,
    threads: int,
) -> None: ...
def group_norm_silu_backward(
    dy: int,
    x: int,
    weight: int,
    bias: int,
    mean: int,
    rstd: int,
    scale: int,
    shift: int,
    add: int,
    more: int,
    dx: int,
    dmore: int,
    dweight: int,
    dbias: int,
    dscale: int,
    dshift: int,
    dadd: int,
    n: int,
    channels: int,
    own: int,
    size: int,
    groups: int,
    act: bool,
    channels_last: bool,
    add_per_image: bool,
    dtype: int,
    threads: int,
) -> None: ...
def ddim_update(
    x_t: int,
    x0: int,
    y: int,
    a_each: int,
    b_each: int,
    a: float,
    b: float,
    clip: float,
    n: int,
    per_image: int,
    dtype: int,
    threads: int,
) -> None: ...
def to_uint8(
    x_t: int,
    x0: int,
    y: int,
    a_each: int,
    b_each: int,
    a: float,
    b: float,
    clip: float,
    n: int,
    channels: int,
    size: int,
    channels_last: bool,
    dtype: int,
    threads: int,
) -> None: ...
def philox(
    seed: int, stream: int, index: int, out: int, n: int, size: int, draw: int, threads: int
) -> None: ...
