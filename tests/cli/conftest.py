"""Two short runs, made once by the command lines themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdgen import distill, train


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train.main(["digits", "--out", str(out), "--steps", "6", "--batch", "16", "--save-every", "2"])
    return out


@pytest.fixture(scope="session")
def student(teacher: Path) -> Path:
    out = teacher.parent / "student"
    short = ["--pairs", "48", "--teacher-steps", "2", "--steps", "4", "--batch", "16"]
    distill.main(["--teacher", str(teacher), "--out", str(out), *short])
    return out


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Callable[[list[str]], None], list[str], int], str]:
    """Run a command line that must end with this exit code; what it said on standard error."""

    def run(main: Callable[[list[str]], None], argv: list[str], code: int) -> str:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        said = capsys.readouterr().err
        assert stop.value.code == code, said
        assert "Traceback" not in said
        return said

    return run
