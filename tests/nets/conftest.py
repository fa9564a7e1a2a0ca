"""The published families of networks, in the small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdgen.nets import PRESETS, UNetConfig


@pytest.fixture
def small() -> Callable[..., UNetConfig]:
    """A preset with two levels of one block, 8×8 pixels and at most 3 classes."""

    def shrink(name: str, **changes: Any) -> UNetConfig:
        base = PRESETS[name]
        facts: dict[str, Any] = {
            "resolution": 8,
            "width": 16,
            "mult": (1, 2),
            "blocks": 1,
            "attention": (4,),
            "classes": min(base.classes, 3),
            "head_width": base.head_width and 8,
        }
        return replace(base, **facts | changes)

    return shrink
