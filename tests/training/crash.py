"""Kills, interrupts and starves trainings, and reports what they left; run as `crash.py SCENARIO
FOLDER`.

A process of its own, so that forking it is safe and one import of torch serves all children.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdgen import checkpoint, durable
from kdgen import run as run_module
from kdgen.errors import BusyError, CheckpointError, KdgenError, UsageError
from kdgen.run import Run
from kdgen.training import fit

spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("conftest.py"))
assert spec
assert spec.loader
toy: Any = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir")


def train(
    folder: Path,
    steps: int = 60,
    every: int = 2,
    method: str = "Denoise",
    body: Callable[..., None] | None = None,
) -> None:
    kind = getattr(toy, method)()
    nets = {role: toy.denoiser(k) for k, role in enumerate(kind.roles)}
    settings = toy.training(steps=steps, save_every=every)
    with Run(folder, {"method": method}) as run:
        for step in fit(kind, nets, toy.Source(), settings, run=run):
            if body:
                body(run, step)


def left(folder: Path) -> dict[str, str]:
    """The final checkpoint's digests and the log."""
    newest = checkpoint.find(folder)
    digests = {file: facts["sha256"] for file, facts in newest.manifest["files"].items()}
    return {**digests, "step": newest.path.name, "log": (folder / "log.jsonl").read_text()}


def child(work: Callable[..., None], *args: Any, errors: Path | None = None) -> int:
    """Fork; the child's exit code follows the error contract, 99 for what nobody foresaw."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    if errors:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    try:
        work(*args)
    except KdgenError as error:
        os.write(2, f"{error}\n".encode())
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        code = 99
    os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def step_on_disk(folder: Path) -> int:
    found = checkpoint.newest(folder / checkpoint.FOLDER)
    return found.facts["step"] if found else 0


def kills(
    folder: Path, wanted: int = 30, method: str = "Denoise", steps: int = 60
) -> dict[str, Any]:
    """SIGKILL at random times until `wanted` have hit; every run that was hit is then finished."""
    report = {"kills": 0, "progress": 0, "runs": 0, "equal": 0}
    begun, rng = time.monotonic(), random.Random(0)
    assert wait(child(train, folder / "reference", steps, 2, method)) == 0
    whole, reference = time.monotonic() - begun, left(folder / "reference")
    while report["kills"] < wanted:
        report["runs"] += 1
        here, before = folder / f"run{report['runs']}", 0
        while report["kills"] < wanted:
            pid = child(train, here, steps, 2, method)
            time.sleep(rng.uniform(0.15, 0.5) * whole)
            os.kill(pid, signal.SIGKILL)  # a zombie until it is waited for: never another process
            if (code := wait(pid)) == 0:
                break
            assert code == -signal.SIGKILL
            now = step_on_disk(here)
            report["kills"] += 1
            report["progress"] += now > before
            before = now
        assert wait(child(train, here, steps, 2, method)) == 0
        report["equal"] += left(here) == reference
    return report


def kills_of_a_duel(folder: Path) -> dict[str, Any]:
    return kills(folder, 10, "Duel", 40)


def kills_between_rounds(folder: Path) -> dict[str, Any]:
    return kills(folder, 10, "Halving", 14)


class Faulty:
    """`os`, but call number `at` among those that touch the disk fails in the given way."""

    def __init__(self, at: int, how: Callable[[], None]) -> None:
        self.at, self.how, self.count = at, how, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.how()
            return real(*args, **options)

        return call


def with_fault(fault: Faulty, work: Callable[..., None], *args: Any) -> None:
    durable.os = run_module.os = fault  # type: ignore[assignment]
    try:
        work(*args)
    finally:
        durable.os = run_module.os = os


def fault_points(folder: Path) -> dict[str, Any]:
    """SIGKILL at each call that touches the disk, and an error at each call; then the same
    command again."""
    assert wait(child(train, folder / "reference", 3, 1)) == 0
    reference = left(folder / "reference")
    count = Faulty(-1, lambda: None)
    with_fault(count, train, folder / "counted", 3, 1)
    numbers = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
    report: dict[str, Any] = {
        "points": count.count,
        "equal": 0,
        "verified": 0,
        "leftovers": 0,
        "codes": {},
    }
    for at in range(1, count.count + 1):
        number = numbers[at % len(numbers)]

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def fail(number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        for how in (die, fail):
            here = folder / f"{how.__name__}{at}"
            code = wait(
                child(with_fault, Faulty(at, how), train, here, 3, 1, errors=folder / "stderr")
            )
            report["codes"][str(code)] = report["codes"].get(str(code), 0) + 1
            if code == 99:
                raise RuntimeError((folder / "stderr").read_text())
            checkpoint.newest(
                here / checkpoint.FOLDER
            )  # raises if there are some and none verifies
            report["verified"] += 1
            train(here, 3, 1)
            report["equal"] += left(here) == reference
            report["leftovers"] += sum(
                p.name.startswith((".tmp-", ".old-")) for p in here.rglob("*")
            )
    return report


def signals(folder: Path, trials: int = 24, steps: int = 40) -> dict[str, Any]:
    """SIGINT or SIGTERM at random: in a step, in a save, in the caller's own work; then the same
    command again."""
    rng, report = random.Random(1), {"equal": 0, "saved": 0, "late": 0, "codes": []}
    begun = time.monotonic()
    assert wait(child(train, folder / "reference", steps)) == 0
    whole, reference = time.monotonic() - begun, left(folder / "reference")

    def slow(run: Run, step: Any) -> None:
        for _ in range(10):
            time.sleep(whole / steps / 10)
            run.check()

    for trial in range(trials):
        here, number = folder / f"run{trial}", (signal.SIGINT, signal.SIGTERM)[trial % 2]
        ready, tell = os.pipe()

        def body(run: Run, step: Any, tell: int = tell, trial: int = trial) -> None:
            if step.number == 1:
                os.write(tell, b".")
            if trial % 3 == 0:
                slow(run, step)

        pid = child(train, here, steps, 2, "Denoise", body)
        os.read(ready, 1)
        time.sleep(rng.uniform(0, 0.5) * whole)
        sent = time.monotonic()
        os.kill(pid, number)
        code = wait(pid)
        report["codes"].append(code)
        report["late"] += time.monotonic() - sent > 10
        report["saved"] += step_on_disk(here) > 0
        train(here, steps)
        report["equal"] += left(here) == reference
    return report


def second_interrupt(folder: Path) -> dict[str, Any]:
    """Two SIGINT while the caller sleeps; and one SIGTERM while the caller polls."""
    ready, tell = os.pipe()

    def sleeps(run: Run, step: Any) -> None:
        if step.number == 5:
            os.write(tell, b".")
            time.sleep(30)

    def polls(run: Run, step: Any) -> None:
        if step.number == 5:
            os.write(tell, b".")
            for _ in range(3000):
                time.sleep(0.01)
                run.check()

    report: dict[str, Any] = {}
    for name, body, sent in (
        ("twice", sleeps, [signal.SIGINT] * 2),
        ("polled", polls, [signal.SIGTERM]),
    ):
        begun = time.monotonic()
        pid = child(train, folder / name, 60, 2, "Denoise", body, errors=folder / f"{name}.err")
        os.read(ready, 1)
        for number in sent:
            time.sleep(0.2)
            os.kill(pid, number)
        report[name] = {
            "code": wait(pid),
            "step": step_on_disk(folder / name),
            "seconds": time.monotonic() - begun,
            "said": (folder / f"{name}.err").read_text(),
        }
    return report


def contention(folder: Path, trials: int = 50) -> dict[str, Any]:
    """Two processes want one directory at once; then one of them is killed while it owns it."""

    def own(told: int, go: int) -> None:
        try:
            with Run(folder / "shared", {}):
                os.write(told, b"1")
                os.read(go, 1)
        except BusyError as error:
            os.write(told, b"0")
            if "in use by pid" not in str(error) or f"pid {os.getpid()} " in str(error):
                raise RuntimeError(str(error)) from error
            raise

    report: dict[str, Any] = {"one_owner": 0, "codes_right": 0}
    for _ in range(trials):
        (heard, told), (go, release) = os.pipe(), os.pipe()
        pids = [child(own, told, go, errors=folder / "stderr") for _ in range(2)]
        answers = os.read(heard, 1) + os.read(heard, 1)
        report["one_owner"] += sorted(answers) == [ord("0"), ord("1")]
        os.write(release, b"..")
        report["codes_right"] += sorted(wait(pid) for pid in pids) == [0, 7]
        for fd in (heard, told, go, release):
            os.close(fd)
    report["said"] = (folder / "stderr").read_text()
    (heard, told), (go, release) = os.pipe(), os.pipe()
    pid = child(own, told, go)
    os.read(heard, 1)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    with Run(folder / "shared", {}) as run:
        report["after_kill"] = bool(run.id)
    return report


def readers(folder: Path) -> dict[str, Any]:
    """Load a run again and again while it trains and retires checkpoints."""
    pid, loads, steps = child(train, folder, 200, 2), 0, set()
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        try:
            steps.add(checkpoint.find(folder).facts["step"])
            checkpoint.load(folder, build=toy.build)
            loads += 1
        except CheckpointError as error:
            if loads:  # before the first checkpoint there is nothing to read
                return {"error": str(error)}
    return {"loads": loads, "steps": len(steps)}


def disk_full(folder: Path) -> dict[str, Any]:
    """From step 10 on, no file may grow beyond 100 bytes."""

    def body(run: Run, step: Any) -> None:
        if step.number == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    def brief(run: Run, step: Any) -> None:
        soft = 100 if 10 <= step.number < 14 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    report: dict[str, Any] = {}
    assert wait(child(train, folder / "reference")) == 0
    for name, how, steps in (("long", body, 60), ("last", body, 11), ("brief", brief, 60)):
        heard, told = os.pipe()  # a file would be full as well
        pid = child(train, folder / name, steps, 2, "Denoise", how, errors=Path(f"/dev/fd/{told}"))
        os.close(told)
        with open(heard) as said:
            report[name] = {"said": said.read(), "code": wait(pid)}
        report[name]["step"] = step_on_disk(folder / name)
    train(folder / "long")
    report["equal"] = [left(folder / n) == left(folder / "reference") for n in ("long", "brief")]
    return report


def unwritable(folder: Path) -> dict[str, Any]:
    """Directories that cannot be written, as a user without privileges."""

    def nobody(path: Path, body: Callable[..., None] | None = None) -> None:
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        train(path, 4, 2)

    folder.chmod(0o755)
    (folder / "closed").mkdir(mode=0o555)
    (folder / "mine").mkdir(mode=0o700)
    train(folder / "run", 4, 2)
    (folder / "run").chmod(0o555)
    report = {}
    for name in ("closed", "closed/below", "mine", "run"):
        if name == "mine" and os.geteuid() != 0:
            continue
        code = wait(child(nobody, folder / name, errors=folder / "stderr"))
        report[name] = [code, (folder / "stderr").read_text()]
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    toy.denoiser()(torch.zeros(2, 1, 8, 8), 0.5)
    train(Path(sys.argv[2]) / "warm", 2, 1)  # whatever is slow the first time
    assert UsageError.exit_code == 2
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
