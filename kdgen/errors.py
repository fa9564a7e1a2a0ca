"""What can go wrong, and the exit code the command lines give it."""

from __future__ import annotations


class KdgenError(Exception):
    """A refusal, for people: `<where>: <what is wrong>; expected <what>. <What to do.>`"""

    exit_code = 1


class UsageError(KdgenError):
    """An option, name or combination that does not exist."""

    exit_code = 2


class DataError(KdgenError):
    """Images, archives or label files that cannot be used."""

    exit_code = 3


class CheckpointError(KdgenError):
    """A checkpoint that is missing, damaged, foreign, or could not be written."""

    exit_code = 4


class NonFiniteError(KdgenError):
    """Training met NaN or infinity and stopped."""

    exit_code = 5


class MemoryLimitError(KdgenError):
    """Does not fit, even at the smallest batch."""

    exit_code = 6


class BusyError(KdgenError):
    """Another process owns the run directory."""

    exit_code = 7


class MissingError(KdgenError):
    """An extra, a weights file or the compiled part is not installed."""

    exit_code = 8


class MetricError(KdgenError):
    """A measure that would not mean what its name says."""

    exit_code = 9


class Interrupted(KdgenError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
