"""Run a generator: noise in by address, uint8 images out, as fast as the machine allows."""

from __future__ import annotations

from kdgen.fast.fused import FastGenerator, generator
from kdgen.fast.plain import Generator

__all__ = ["FastGenerator", "Generator", "generator"]
