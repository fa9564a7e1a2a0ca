"""The state of a training on disk: saved at intervals and on signals, restored bit for bit."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from kdgen.batches import Source, described
from kdgen.checkpoint import Checkpoint, fill, nonfinite, plain, size_of, tensors_digest
from kdgen.errors import NonFiniteError
from kdgen.loop import Loop
from kdgen.run import Run

STATE = "state.safetensors"
log = logging.getLogger("kdgen")


class Keeper:
    """Saves a loop in a run that has been entered, and restores it."""

    def __init__(self, loop: Loop, run: Run, source: Source | None) -> None:
        if not run.id:
            raise ValueError(
                "fit: the run has not been entered; expected `with Run(...) as run:`. Enter it."
            )
        self.loop, self.run = loop, run
        self.saved = 0  # the newest step on disk
        self.facts = self._facts(source)
        loop.keeper = self
        loop.ledger.lines = run.log
        loop.ledger.saved = lambda: self.saved

    def _facts(self, source: Source | None) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        loop = self.loop
        return {
            "method": loop.plan[0].config(),
            "training": asdict(loop.training),
            "source": described(source),
            "nets": {role: loop.nets[role].config() for role in loop.roles},
            "frozen": {
                role: tensors_digest(loop.nets[role].state_dict())
                for role in loop.roles
                if role not in self._moving
            },
        }

    def after(self, *, due: bool, last: bool) -> None:
        """End of a step: save if it is due, obey a signal."""
        if due:
            self.save(last=last)
        if last or self.loop.done % self.loop.training.log_every == 0:
            self.run.time(self.loop.done, images=self.loop.done * self.loop.training.batch)
        self.run.check()

    def save(self, *, last: bool = True) -> int:
        """Save unless this step is on disk already; the newest step there.

        Raises NonFiniteError rather than keep weights that are not finite; CheckpointError as
        `Run.write` does.
        """
        loop = self.loop
        if loop.done <= self.saved:
            return self.saved
        loop.ledger.read(now=True)
        files = self._tensors()
        for file, tensors in files.items():
            if bad := nonfinite(tensors):
                raise NonFiniteError(
                    f"fit: {bad[0]} of {file} is not finite after step {loop.done}; expected "
                    "numbers. "
                    f"Nothing was saved, the newest checkpoint is step {self.saved}. Try a lower "
                    "lr."
                )
        average = "ema.safetensors" if loop.average else "student.safetensors"
        facts = {
            "fit": plain(self.facts),
            "config": loop.nets.student.config(),
            "weights": {"ema": average, "raw": "student.safetensors"},
            "strikes": loop.ledger.strikes,
        }
        if self.run.write(loop.done, files, facts, last=last):
            self.saved = loop.done
        return self.saved

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        loop = self.loop
        files: dict[str, dict[str, Tensor]] = {}
        for role in self._moving:
            files[f"{role}.safetensors"] = dict(loop.nets[role].state_dict())
        for name, learner in loop.learners.items():
            files[f"{name}.adam.safetensors"] = learner.tensors()
        if loop.average is not None:
            files["ema.safetensors"] = dict(loop.average.denoiser.state_dict())
        if loop.round > 0:  # a promoted teacher exists nowhere else
            files["teacher.safetensors"] = dict(loop.nets.teacher.state_dict())
        # As bits: the last loss may be NaN, which checkpoints refuse.
        files[STATE] = {"last": loop.ledger.last.view(torch.int32), "sums": loop.ledger.sums}
        return files

    def resume(self) -> None:
        """Continue from the newest good checkpoint; without one, check that there is room for
        it."""
        self.run.attach(self.save)
        found = self.run.newest()
        if found is None:
            self.run.rewind(0)
            self.run.check_space(self._size())
            return
        self.run.require(found.facts["fit"], self.facts)
        self._restore(found)
        self.run.rewind(self.loop.done)
        log.info("resumed at step %d from %s (verified)", self.loop.done, found.path.name)

    def _restore(self, found: Checkpoint) -> None:
        loop = self.loop
        loop.done = self.saved = found.facts["step"]
        for role in self._moving:
            _fill(loop.nets[role], found, f"{role}.safetensors")
        for name, learner in loop.learners.items():
            learner.restore(found.read(f"{name}.adam.safetensors"))
        if loop.average is not None:
            _fill(loop.average.denoiser, found, "ema.safetensors")
        if loop.round > 0:
            loop.replace_teacher()
            _fill(loop.nets.teacher, found, "teacher.safetensors")
        state, ledger = found.read(STATE), loop.ledger
        ledger.strikes = found.facts["strikes"]
        ledger.last = state["last"].view(torch.float32).to(loop.device)
        ledger.sums = state["sums"].to(loop.device)
        loop.restored()

    @property
    def _moving(self) -> tuple[str, ...]:
        """The roles whose weights change."""
        trained = {role for learner in self.loop.learners.values() for role in learner.roles}
        return tuple(r for r in self.loop.roles if r in trained or r == "target")

    def _size(self) -> int:
        """Bytes of a checkpoint: weights and two moments of each trained role, and the averages."""
        loop = self.loop
        sizes = {r: size_of({r: dict(loop.nets[r].state_dict())}) for r in self._moving}
        student = sizes.get("student", 0)
        weights = student * ((loop.average is not None) + (len(loop.plan) > 1))  # average, teacher
        return 3 * sum(sizes.values()) - 2 * sizes.get("target", 0) + weights


def _fill(denoiser: Any, found: Checkpoint, file: str) -> None:
    fill(denoiser, found.read(file), str(found.path / file))
