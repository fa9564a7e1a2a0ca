"""The description of a U-Net: the published ones differ in these fields only."""

from __future__ import annotations

from dataclasses import dataclass

WAVES = ("sin_cos", "cos_sin", "fourier")
LABELS = ("table", "dense", "linear", "noise")
RESAMPLES = ("conv", "block", "projected")
INITS = ("xavier", "xavier_small", "kaiming", "lecun")
DECODER_ATTENTION = ("every", "last")
DOWN_PADDINGS = ("after", "around")
_CHOICES = {
    "waves": WAVES,
    "labels": LABELS,
    "resample": RESAMPLES,
    "init": INITS,
    "decoder_attention": DECODER_ATTENTION,
    "down_padding": DOWN_PADDINGS,
}


@dataclass(frozen=True)
class UNetConfig:
    """`resolution` and `attention` in pixels; `mult` the width of each level in units of `width`.

    The defaults are DDPM's (Ho et al. 2020). DDPM++ and NCSN++ (Song et al. 2021), ADM (Dhariwal &
    Nichol 2021) and Progressive Distillation's network set the second half of the fields.
    """

    resolution: int
    channels: int = 3
    out_channels: int | None = None  # of one head; None: like channels; "both" needs twice that
    width: int = 128
    mult: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    classes: int = 0
    groups: int = 32  # at most, and groups divide the channels
    norm_eps: float = 1e-6  # DDPM's weights were trained with it; 1e-5 shifts their output

    augments: int = 0  # numbers that describe an augmented image; Karras et al. 2022 have 9
    outputs: int = 1  # heads: images predicted at once
    # Deterministic "prior ShakeDrop" of Shao et al. 2023: the share of the decoder at time 0.
    skip_gain: float | None = None

    group_width: int = 4  # channels that a group holds at least
    head_width: int | None = None  # channels of one attention head; None: one head has them all
    decoder_attention: str = "every"  # which blocks of an attention level have it: "every", "last"
    emb_mult: int = 4  # width of the embedding, in units of `width`
    scale_shift: bool = False  # the embedding scales and shifts the second norm; False: adds to it
    # How a level changes size: "conv" strided, and nearest neighbour; inside a residual "block",
    # with its shortcut resampled, or also "projected" by a 1×1 convolution.
    resample: str = "conv"
    # Where a strided convolution sees zeros: "after" the image (right and below: TensorFlow's SAME,
    # so DDPM's) or "around" it, as networks born in PyTorch do.
    down_padding: str = "after"
    filter: tuple[int, ...] = (1, 1)  # of the resampling inside a block, in both directions
    pyramid: bool = False  # a shrinking copy of the image joins every level of the encoder
    skip_scale: float = 1.0  # of every residual sum: √½ keeps its variance
    # Sinusoids of the time: frequencies 1 … 1e-4 as [sin, cos], the same without their last one as
    # [cos, sin], or random "fourier" ones, twice as many.
    waves: str = "sin_cos"
    fourier_scale: float = 16.0  # standard deviation of the random frequencies
    # How a class joins: a row of a "table" that has one for "no class" too; a layer of its one-hot
    # vector, "dense" with a bias or "linear" without; or into the "noise" waves, times √classes.
    labels: str = "table"
    init: str = "xavier"  # of the weights: see `layers`

    def __post_init__(self) -> None:
        for name in ("mult", "attention", "filter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        self._check_sizes()
        self._check_choices()
        self._check_heads()

    @property
    def emb_width(self) -> int:
        return self.emb_mult * self.width

    @property
    def wave_width(self) -> int:
        return 2 * self.width if self.waves == "fourier" else self.width

    def has_attention(self, level: int) -> bool:
        return self.resolution >> level in self.attention

    def _check_sizes(self) -> None:
        counts = (self.resolution, self.channels, self.blocks, self.groups, len(self.mult))
        head_width = 1 if self.head_width is None else self.head_width
        more = (self.outputs, self.group_width, self.emb_mult, head_width)
        optional = min(self.classes, self.augments)
        if min(*counts, *more, *self.mult) < 1 or optional < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"UNetConfig: {self}; expected sizes of at least 1, augments and classes of at "
                "least 0 and dropout in [0, 1). Correct them."
            )
        shrink = 2 ** (len(self.mult) - 1)
        if self.resolution % shrink:
            raise ValueError(
                f"UNetConfig: resolution {self.resolution} with {len(self.mult)} levels; expected "
                f"a multiple of {shrink}. Use fewer levels or resize."
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"UNetConfig: width is {self.width}; expected a multiple of 4. Round it."
            )

    def _check_choices(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"UNetConfig: {name} is {value!r}; expected {', '.join(known)}. Pick one."
                )
        if not self.filter or len(self.filter) % 2 or sum(self.filter) <= 0:
            raise ValueError(
                f"UNetConfig: filter is {self.filter}; expected an even number of weights with a "
                "sum above 0. Try (1, 1) or (1, 3, 3, 1)."
            )
        if self.skip_gain is not None and not 0 <= self.skip_gain <= 1:
            raise ValueError(
                f"UNetConfig: skip_gain is {self.skip_gain}; expected a share in [0, 1]. Try 0.75."
            )

    def _check_heads(self) -> None:
        deepest = len(self.mult) - 1
        for level, mult in enumerate(self.mult):
            channels = mult * self.width
            heads = self.head_width if level == deepest or self.has_attention(level) else None
            if heads and channels % heads:
                raise ValueError(
                    f"UNetConfig: head_width is {heads}, attention has {channels} channels; "
                    "expected the first to divide the second. Change width or head_width."
                )
