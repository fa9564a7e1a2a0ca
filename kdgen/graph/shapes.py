"""Looking for what no graph can hold with shapes alone: without a GPU, and without computing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)

from kdgen.graph.faults import CaptureError, explained

_TELLING = re.compile(r"\.numpy\(\) is not supported|FakeTensor Device Propagation")


def objection(
    call: Callable[..., Any], *arguments: Any, where: str = "capture"
) -> CaptureError | None:
    """Why `call(*arguments)` cannot be captured; None where nothing shows.

    The arguments (tensors, trees of them, modules) are copied as shapes without numbers, and the
    call raises where it reads one. It must touch no other tensors that it changes. Its gradients
    are not looked at, and operators without a shape rule end the search.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with FakeCopyMode(mode):
            shapes = copy.deepcopy(arguments)
        with mode:
            call(*shapes)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        return explained(error, where)
    except Exception as error:  # of the search or of the call itself; a real run will tell
        return explained(error, where) if _TELLING.search(str(error)) else None
    return None
