"""Networks that others have trained, read from their files without running any of their code."""

from __future__ import annotations

from kdgen.foreign.edm import denoiser

__all__ = ["denoiser"]
