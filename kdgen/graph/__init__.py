"""Record once what a callable does on a device; then replay it without the host.

    step = graph.capture(net, x, t)   # runs net a few times, then records it
    y = step(x, t)                    # copies into step.inputs, replays, gives step.outputs

One launch stands for hundreds, so small batches no longer wait for Python. What is recorded are
kernels and addresses: Python values are constants of the recording, and nothing in it may wait for
the device, depend on a value in shape, or live on the host. `capture` says which line does.
"""

from kdgen.graph.captured import WARMUP, Captured, available, capture, warm
from kdgen.graph.cuda import Cuda
from kdgen.graph.driver import Driver, Recording
from kdgen.graph.faults import CaptureError, waits
from kdgen.graph.shapes import objection

__all__ = [
    "WARMUP",
    "CaptureError",
    "Captured",
    "Cuda",
    "Driver",
    "Recording",
    "available",
    "capture",
    "objection",
    "waits",
    "warm",
]
