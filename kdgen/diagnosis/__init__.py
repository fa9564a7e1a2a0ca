"""What kdgen finds on this machine; nothing heavy is imported before it was looked for."""

from __future__ import annotations

from kdgen.diagnosis import machine, shipped, software
from kdgen.diagnosis.finding import Finding, has

__all__ = ["Finding", "findings", "has"]


def findings() -> list[Finding]:
    """All of them, in reading order."""
    found = [software.python(), software.torch(), software.libraries()]
    usable = all(f.state != "missing" for f in found)
    found += [software.compiled(), machine.memory(), machine.disk()]
    if not usable:
        return found
    found += [software.triton(), software.cuda()]
    found += [machine.gpu(), machine.driver(), machine.toolkit()]
    kernels = software.kernels()
    if kernels.state == "missing":
        return [*found, kernels]
    found += [kernels, software.backends(), software.engine()]
    return [*found, shipped.digits(), shipped.student()]
