"""A run directory: one owner, one configuration, verified checkpoints, an exact log.

runs/a/config.json          the configuration and the run's id
runs/a/checkpoints/step-…   see `kdgen.checkpoint`
runs/a/log.jsonl            metrics by step, without clocks: equal runs write equal bytes
runs/a/timing.jsonl         clocks
runs/a/lock                 who is writing
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from kdgen import checkpoint, durable
from kdgen.checkpoint import Checkpoint, Tensors
from kdgen.errors import CheckpointError, Interrupted, UsageError
from kdgen.lock import Lock

FREE = ("log_every", "save_every", "skips", "graph")  # settings that do not change what is learned
_SECOND = 5.0  # seconds within which a second interrupt means now
_FAILURES = 3  # saves in a row that may fail before the run stops

log = logging.getLogger("kdgen")


class Run:
    """Context manager that owns the directory `path`; the same configuration resumes it.

    `config` is JSON-able. A directory that holds checkpoints refuses another configuration, except
    for settings named in `free` (their own name, or dotted from the top). `keep` checkpoints are
    kept. Inside the block the first SIGINT or SIGTERM asks to stop at the end of a step; a second
    SIGINT within five seconds interrupts at once. Raises BusyError, UsageError (not a directory,
    not writable, configuration differs), CheckpointError.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        keep: int = 2,
        free: Collection[str] = FREE,
    ) -> None:
        if keep < 2:
            raise ValueError(
                f"Run: keep is {keep}; expected at least 2, so that one is left when the newest is "
                "damaged. Use keep=2."
            )
        self.path, self.keep, self.free = Path(path), keep, frozenset(free)
        self.config: dict[str, Any] = checkpoint.plain(config)
        self.id = ""
        self.folder = self.path / checkpoint.FOLDER
        self._lock = Lock(self.path / "lock")
        self._fd = -1  # log.jsonl
        self._backlog = b""  # lines that the disk has refused so far
        self._logged = 0  # steps up to this one are in the log already
        self._failures = 0
        self._signal = 0
        self._signalled = -_SECOND
        self._handlers: dict[int, Any] = {}
        self._saver: Callable[[], int] | None = None

    def __enter__(self) -> Run:
        self._prepare()
        try:
            durable.clean(self.path)
            durable.clean(self.folder)
            self._agree()
            self._open_log()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise self._unusable(error) from error
            raise
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        self._saver = None
        self._close_log()
        self._lock.release()

    # The directory

    def _prepare(self) -> None:
        """Make and lock the directory, and find out now whether it can be written."""
        try:
            if (self.path.exists() or self.path.is_symlink()) and not self.path.is_dir():
                raise UsageError(
                    f"{self.path}: exists and is no directory; expected a run directory. "
                    "Choose another."
                )
            if (self.path / checkpoint.MANIFEST).exists():
                raise UsageError(
                    f"{self.path}: is a checkpoint; expected a run directory. Choose another."
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            durable.replace_file(self.path / ".probe", b"")
            os.unlink(self.path / ".probe")
        except OSError as error:
            self._lock.release()
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UsageError:
        return UsageError(
            f"{self.path}: {error.strerror or error}; expected a directory that can be written. "
            "Choose another, or fix its permissions or free space."
        )

    def _agree(self) -> None:
        """Compare with the stored configuration, or store this one."""
        file = self.path / "config.json"
        stored = _stored(file) if file.exists() else None
        if stored and checkpoint.steps(self.folder):
            self.require(stored["config"], self.config)
        self.id = stored["run"] if stored else secrets.token_hex(8)
        body = {"format": checkpoint.FORMAT, "run": self.id, "config": self.config}
        content = checkpoint.canonical({**body, "digest": checkpoint.digest(body)})
        if not stored or file.read_bytes() != content:
            durable.replace_file(file, content)

    def require(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """UsageError naming what differs between two configurations, other than free settings."""
        found = [
            line for key, line in differences(old, checkpoint.plain(new)) if not self._is_free(key)
        ]
        if found:
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            raise UsageError(
                f"{self.path}: configuration differs from the run's: "
                f"{'; '.join(found[:10])}{more}; expected the same. "
                "Choose another directory, or change it back to resume."
            )

    def _is_free(self, key: str) -> bool:
        return key in self.free or key.rpartition(".")[2] in self.free

    # Checkpoints

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of this run that verifies; None at its beginning.

        CheckpointError if there are some and all are damaged.
        """
        return checkpoint.newest(self.folder, self.id)

    def write(
        self, step: int, tensors: Mapping[str, Tensors], facts: Mapping[str, Any], *, last: bool
    ) -> bool:
        """Save the state after `step`; whether it worked.

        A failure is a warning, and CheckpointError when it is the third in a row or the `last` one:
        the state on disk stays as it was.
        """
        target = self.folder / checkpoint.name_of(step)
        try:
            self._sync_log()
            checkpoint.write(target, tensors, {**facts, "run": self.id, "step": step})
        except (OSError, CheckpointError) as error:
            refused = (
                error
                if isinstance(error, CheckpointError)
                else checkpoint.refused(target, error, checkpoint.size_of(tensors))
            )
            self._failures += 1
            if last or self._failures >= _FAILURES:
                raise refused from error
            log.warning("%s Going on; the next save tries again.", refused)
            return False
        self._failures = 0
        for old in checkpoint.steps(self.folder)[self.keep :]:
            with suppress(OSError):  # harmless: tried again after the next save
                durable.remove(old)
        return True

    def check_space(self, size: int) -> None:
        """Refuse if a checkpoint of `size` bytes does not fit; warn if `keep` + 1 do not."""
        free, wanted = checkpoint.free(self.path), int(1.1 * (self.keep + 1) * size)
        text = f"{free / 1e6:,.1f} MB free, one checkpoint takes {size / 1e6:,.1f} MB"
        if free < size:
            raise CheckpointError(
                f"{self.path}: {text}; expected room for it. Free space or choose another "
                "directory."
            )
        if free < wanted:
            log.warning(
                "%s: %s; expected %s MB for %d of them.",
                self.path,
                text,
                f"{wanted / 1e6:,.1f}",
                self.keep + 1,
            )

    # Stopping

    def attach(self, saver: Callable[[], int]) -> None:
        """`saver` saves the present state and returns its step; `fit` gives it."""
        self._saver = saver

    def save(self) -> None:
        """Save the state now; does nothing before `fit` has begun."""
        if self._saver is not None:
            self._saver()

    def check(self) -> None:
        """Call it in long loops of your own: after a signal it saves and raises Interrupted."""
        if not self._signal:
            return
        name, begun = signal.Signals(self._signal).name, time.monotonic()
        step = self._saver() if self._saver is not None else 0
        what = (
            f"saved {checkpoint.name_of(step)} in {time.monotonic() - begun:.1f} s"
            if step
            else "stopped"
        )
        raise Interrupted(f"{name}: {what}. The same command resumes.", self._signal)

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self._signal == signal.SIGINT and now - self._signalled < _SECOND:
            raise KeyboardInterrupt("second interrupt: stopping without saving")
        self._signal, self._signalled = number, now

    # The log

    def log(self, step: int, **values: Any) -> None:
        """Append a line to log.jsonl, unless the log held this step when the run was resumed.

        Values are JSON-able and must follow from the step alone: no clocks, or a resumed run
        differs.
        """
        if step <= self._logged:
            return
        self._backlog += json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n"
        with suppress(OSError):  # kept; the next save complains if the disk still refuses
            self._write_backlog()

    def time(self, step: int, **values: Any) -> None:
        """Append a line to timing.jsonl, which may hold clocks and is not rewound."""
        with suppress(OSError), open(self.path / "timing.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget log lines after `step`: the run goes on from there."""
        file = self.path / "log.jsonl"
        try:
            raw = file.read_bytes()
            kept = b"".join(_lines_until(raw, step))
            if kept != raw:
                self._close_log()
                durable.replace_file(file, kept)
                self._open_log()
        except OSError as error:
            raise self._unusable(error) from error
        self._logged = step

    def _open_log(self) -> None:
        self._fd = os.open(self.path / "log.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def _close_log(self) -> None:
        with suppress(OSError):
            self._write_backlog()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write_backlog(self) -> None:
        while self._backlog:
            self._backlog = self._backlog[os.write(self._fd, self._backlog) :]

    def _sync_log(self) -> None:
        self._write_backlog()
        os.fsync(self._fd)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dotted key, "key old -> new") wherever two JSON contents differ."""
    a, b = dict(_leaves(old)), dict(_leaves(new))
    return [
        (key, f"{key} {_shown(a, key)} -> {_shown(b, key)}")
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    ]


def _leaves(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "(absent)"


def _lines_until(raw: bytes, step: int) -> Iterator[bytes]:
    for line in raw.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):  # torn by a power cut
            return


def _stored(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
        found = json.loads(raw)
        body = {k: v for k, v in found.items() if k != "digest"}
        if found["digest"] == checkpoint.digest(body) and checkpoint.canonical(found) == raw:
            return body
    except (ValueError, KeyError, AttributeError):
        pass
    raise CheckpointError(
        f"{file}: damaged, its digest differs; expected as written. Restore it, or choose another "
        "directory."
    )
