"""Published networks, and tiny ones, by name."""

from __future__ import annotations

import math
from dataclasses import replace

from kdgen.nets.config import UNetConfig

# Dhariwal & Nichol 2021, arXiv:2105.05233, as Karras et al. 2022 train it.
_ADM = UNetConfig(
    64,
    width=192,
    mult=(1, 2, 3, 4),
    blocks=3,
    attention=(32, 16, 8),
    classes=1000,
    norm_eps=1e-5,
    head_width=64,
    scale_shift=True,
    resample="block",
    waves="cos_sin",
    labels="linear",
    init="kaiming",
)
# Salimans & Ho 2022, arXiv:2202.00512, appendix D.
_PD = UNetConfig(
    32,
    width=256,
    mult=(1, 1, 1),
    blocks=3,
    attention=(16, 8),
    group_width=1,
    scale_shift=True,
    resample="block",
    labels="dense",
    init="lecun",
)
# DDPM++ of Song et al. 2021, arXiv:2011.13456, without the parts that Karras et al. 2022 added.
_SONG = UNetConfig(
    32,
    mult=(1, 2, 2, 2),
    blocks=4,
    decoder_attention="last",
    resample="projected",
    skip_scale=math.sqrt(0.5),
    labels="noise",
    init="xavier_small",
)
_EDM = replace(_SONG, mult=(2, 2, 2), augments=9)
_CUD = replace(_SONG, width=32, mult=(2, 2, 2), blocks=2)

PRESETS: dict[str, UNetConfig] = {
    # Ho et al. 2020, appendix B: CIFAR-10 (35,746,307 parameters), then 64 and 256 pixels.
    "ddpm32": UNetConfig(32),
    "ddpm64": UNetConfig(64, mult=(1, 2, 2, 2, 4)),
    "ddpm256": UNetConfig(256, mult=(1, 1, 2, 2, 4, 4)),
    # Progressive Distillation: CIFAR-10, ImageNet and LSUN; the last two predict x0 and eps.
    "pd32": _PD,
    "pd64": replace(
        _PD,
        resolution=64,
        out_channels=6,
        width=192,
        mult=(1, 2, 3, 4),
        attention=(32, 16, 8),
        head_width=64,
        classes=1000,
    ),
    "pd128": replace(
        _PD,
        resolution=128,
        out_channels=6,
        width=64,
        mult=(1, 2, 4, 6, 8),
        attention=(32, 16, 8),
        head_width=64,
        emb_mult=12,
    ),
    # Karras et al. 2022, arXiv:2206.00364: CIFAR-10, FFHQ and AFHQ, ImageNet.
    "edm32": _EDM,
    "edm32-cond": replace(_EDM, classes=10),
    "edm64": replace(_EDM, resolution=64, mult=(1, 2, 2, 2)),
    "adm64": _ADM,
    # NCSN++ of Song et al. 2021 as Song et al. 2023 (arXiv:2303.01469) use it.
    "ncsnpp32": replace(_EDM, waves="fourier", pyramid=True, filter=(1, 3, 3, 1)),
    # Liu et al. 2022, arXiv:2209.03003.
    "rf32": _SONG,
    # Catch-Up Distillation, Shao et al. 2023, arXiv:2305.10769: MNIST, and the encoder of CIFAR-10,
    # whose own network is edm32 with augments=0.
    "cud28": replace(_CUD, resolution=28, channels=1),
    "cudenc32": replace(_CUD, out_channels=6),
    # Ours: minutes on two CPU cores.
    "tiny8": UNetConfig(8, channels=1, width=32, mult=(1, 2), blocks=1, attention=(4,)),
    "tiny8-edm": replace(
        _EDM, resolution=8, channels=1, width=32, mult=(1, 2), blocks=1, attention=(4,)
    ),
    "tiny8-adm": replace(
        _ADM,
        resolution=8,
        channels=1,
        width=32,
        mult=(1, 2),
        blocks=1,
        attention=(4,),
        classes=0,
        head_width=32,
    ),
    "tiny16": UNetConfig(16, width=32, mult=(1, 2, 2), blocks=1, attention=(8,)),
    "tiny32": UNetConfig(32, width=32, mult=(1, 2, 2, 2), blocks=1, attention=(8,)),
}
