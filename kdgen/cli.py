"""What all command lines share: parsing, exit codes, devices, progress."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import kdgen
from kdgen.errors import Interrupted, KdgenError, MissingError, UsageError

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from kdgen.training import Step

Args = TypeVar("Args")

VERBS = {
    "train": "train a teacher",
    "distill": "distil a teacher into a generator of one or a few steps",
    "sample": "make images",
    "convert": "turn a model of EDM, SiD or diffusers into a checkpoint",
    "evaluate": "measure images of a model against real ones",
    "compare": "distil one teacher by every method, side by side",
    "demo": "all of it on handwritten digits, with a report",
    "recipes": "list the named runs",
    "doctor": "say what works on this machine",
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    """`kdgen <verb> …`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        importlib.import_module(f"kdgen.{verb}").main(sys.argv[2:])
        return
    if verb == "--version":
        print(f"kdgen {kdgen.__version__}")
        return
    lines = [f"  {name:<10} {what}" for name, what in VERBS.items()]
    print("usage: kdgen <verb> [options]   (kdgen <verb> --help)\n\n" + "\n".join(lines))
    if verb not in ("-h", "--help"):
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Pick one."
        said = f"\nkdgen: error: unknown verb {verb!r}; expected one of the above. {hint}"
        print(said, file=sys.stderr)
        sys.exit(UsageError.exit_code)


def entry(
    args: type[Args], run: Callable[[Args], None], argv: Sequence[str] | None, prog: str
) -> None:
    """Parse `argv` into the dataclass `args` and run; a refusal is one line and an exit code."""
    import tyro

    logging.basicConfig(format="kdgen: %(message)s")
    logging.getLogger("kdgen").setLevel(logging.INFO)
    parsed = tyro.cli(
        args,
        args=argv,
        prog=f"python -m kdgen.{prog}",
        description=sys.modules[args.__module__].__doc__,  # with its examples
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        with _required(getattr(parsed, "require_kernels", False)):
            run(parsed)
    except (
        KdgenError,
        ValueError,
        OSError,
        MemoryError,
        KeyboardInterrupt,
        RuntimeError,
    ) as error:
        mistake = isinstance(error, RuntimeError) and not _for_want_of_a_kernel(error)
        if mistake or os.environ.get("KDGEN_DEBUG"):
            raise
        message, code = _verdict(error)
        print(f"kdgen: {message}", file=sys.stderr)
        sys.exit(code)


def _verdict(error: BaseException) -> tuple[str, int]:
    """Message and exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, KdgenError):
        return f"error: {error}", error.exit_code
    if _for_want_of_a_kernel(error):
        return f"error: {error}", MissingError.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}. Choose another place.", 1
    return f"error: {error}", UsageError.exit_code


@contextmanager
def terminable(prog: str) -> Iterator[None]:
    """SIGTERM raises Interrupted inside, so that what is half done can be cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # clearing away is not interrupted again
        name = signal.Signals(number).name
        raise Interrupted(f"{prog}: {name}, stopped; nothing is kept", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _required(wanted: bool) -> AbstractContextManager[None]:
    """`--require-kernels`: a fast kernel that is missing is an error."""
    if not wanted:
        return nullcontext()
    from kdgen import kernels

    return kernels.require()


def _for_want_of_a_kernel(error: BaseException) -> bool:
    """Whether fast kernels are required and not there. Without them loaded nobody said so."""
    kernels = sys.modules.get("kdgen.kernels")
    return kernels is not None and isinstance(error, kernels.Unavailable)


def device(name: str) -> torch.device:
    """The device of `--device`: "auto" is the first GPU, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: unknown; expected auto, cpu, cuda or cuda:N. Pick one.")
    found = torch.device(name)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            f"--device {name}: torch {torch.__version__} sees no GPU. Use --device cpu; "
            "`kdgen doctor` says more."
        )
    return found


def device_name(where: torch.device) -> str:
    """The device as a number's caption: GPU model, or CPU model with threads."""
    import torch

    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        return models[0] if models else "CPU"
    except OSError:
        return "CPU"


def line(total: int, what: str, unit: str) -> tqdm[Any]:
    """A progress line; every ten seconds where there is no terminal."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    pace = 10 if quiet else 0.2
    return tqdm(
        total=total, desc=what, unit=unit, mininterval=pace, ascii=quiet, dynamic_ncols=True
    )


def bar(steps: Iterable[Step], total: int, images: int, what: str) -> Iterator[Step]:
    """The steps, with a progress line: steps, loss, images/s, time left."""
    first, begun = 0, time.perf_counter()
    with line(total, what, "step") as shown:
        for step in steps:
            if not first:
                # A resumed run starts in the middle.
                first, begun = step.number, time.perf_counter()
                shown.initial = shown.last_print_n = shown.n = first - 1
            shown.update(step.number - shown.n)
            if step.every(10):
                rate = (step.number - first) * images / (time.perf_counter() - begun)
                text = f"loss {float(step.loss):.4f}, {rate:,.0f} images/s"
                shown.set_postfix_str(text, refresh=False)
            yield step
