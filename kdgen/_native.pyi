"""The compiled CPU kernels. Tensors are addresses; `kdgen.kernels.native` is the way in."""

from collections.abc import Callable

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
def bias_residual(
    x: int,
    residual: int,
    bias: int,
    y: int,
    scale: float,
    n: int,
    channels: int,
    size: int,
    channels_last: bool,
    dtype: int,
    threads: int,
) -> None: ...
def bias_residual_backward(
    dy: int,
    dx: int,
    dbias: int,
    partial: int,
    scale: float,
    n: int,
    channels: int,
    size: int,
    channels_last: bool,
    dtype: int,
    threads: int,
) -> None: ...
def chain_step(
    x_t: int,
    raw: int,
    y: int,
    table: int,
    step: int,
    steps: int,
    clip: float,
    n: int,
    channels: int,
    size: int,
    raw_channels: int,
    channels_last: bool,
    bytes: bool,
    dtype: int,
    raw_dtype: int,
    threads: int,
) -> None: ...
def scale_input(
    x: int,
    y: int,
    c_each: int,
    step: int,
    steps: int,
    c: float,
    n: int,
    channels: int,
    size: int,
    out_channels: int,
    channels_last: bool,
    dtype: int,
    out_dtype: int,
    threads: int,
) -> None: ...
def philox(
    seed: int, stream: int, index: int, out: int, n: int, size: int, draw: int, threads: int
) -> None: ...
def use_one_thread() -> None:
    """For this thread, until the `Program.call` that it is in ends."""

class Program:
    """A network as steps over buffers, which run in the order in which they were added.

    A buffer holds (height, width, channels) of every image, channels in multiples of 16, in float32
    (0) or bfloat16 (2); -1 is no buffer. It is written once, in full, by one step, and channels
    that stand for nothing are zero because their weights, gains and offsets are. Weights and tables
    are float32, at addresses, and copied. A table has `rows` rows; with more than one, an image is
    told its row. Raises ValueError for what does not fit.
    """

    def __init__(self, isa: str = "", guarded: bool = False) -> None:
        """For an instruction set by name, or the selected one. `guarded`, for tests: buffers lie
        between bands and start as NaN, and a run raises RuntimeError when a band was written."""
    @property
    def isa(self) -> str: ...
    @property
    def fast_bf16(self) -> bool:
        """Whether a product of bfloat16 pairs is one instruction; else it is emulated."""
    @property
    def fast_int8(self) -> bool:
        """Whether a product of four int8 is one instruction; else it is emulated."""
    @property
    def packed(self) -> int:
        """Bytes of weights, as they are kept."""
    def buffer(self, height: int, width: int, channels: int, dtype: int) -> int: ...
    def input(self, y: int, channels: int) -> None:
        """y[..., :channels] = the images, 0 beyond."""
    def output(self, x: int, channels: int) -> None:
        """The answer = x[..., :channels]."""
    def convolve(
        self,
        name: str,
        x: int,
        more: int,
        residual: int,
        y: int,
        weight: int,
        bias: int,
        rows: int,
        kernel: int,
        stride: int,
        before: int,
        form: str,
        product: int,
        scale: float,
    ) -> None:
        """y = (conv(x and more) + bias[row] + residual)·scale; `before`: zeros above and left.

        `form`: "direct"; "winograd2", "winograd4" (3×3, stride 1, before 1); "up_direct",
        "up_winograd" (the same, of x doubled by nearest neighbour). `product`: what is
        multiplied, 0 float32, 2 bfloat16 or 3 int8; sums are float32.
        """
    def normalise(
        self,
        name: str,
        x: int,
        more: int,
        y: int,
        gain: int,
        offset: int,
        rows: int,
        groups: int,
        own: int,
        others: int,
        eps: float,
        act: bool,
    ) -> None:
        """y = act(GN(x and more)·gain[row] + offset[row]), over `own` channels of x and `others` of
        more; act is SiLU."""
    def attend(
        self,
        name: str,
        q: int,
        q_at: int,
        k: int,
        k_at: int,
        v: int,
        v_at: int,
        y: int,
        heads: int,
        width: int,
        scale: float,
    ) -> None:
        """y = softmax(q·kᵀ·scale)·v, for every head of `width` channels from `…_at` on."""
    def resample(self, name: str, x: int, y: int, taps: list[float], up: bool, before: int) -> None:
        """Half or twice the size by a separable filter, zeros around."""
    def combine(self, name: str, x: int, more: int, y: int, a: int, b: int, rows: int) -> None:
        """y = a[row]·x + b[row]·more."""
    def call(
        self, name: str, x: int, y: int, compute: Callable[[memoryview, memoryview], object]
    ) -> None:
        """y = compute(x), image by image: it reads the first (height, width, channels) and writes
        the second. It runs on whichever thread, with one thread to itself; what it raises, `run`
        raises."""
    def run(self, images: int, rows: int, out: int, n: int, threads: int) -> None:
        """images (n, H, W, C) float32, rows int32 (n,) or 0, out likewise. An image's bits depend
        neither on n nor on threads."""
    def profile(self, images: int, rows: int, out: int, n: int) -> list[tuple[str, float]]:
        """Seconds of every step, on one thread."""
    def workspace(self, n: int, threads: int) -> int:
        """Bytes that such a run works in."""
