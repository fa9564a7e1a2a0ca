"""One owner for a directory; the operating system takes the lock back when the owner dies."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from kdgen.errors import BusyError


class Lock:
    """An exclusive lock on a file that says who holds it. Local and POSIX-coherent file systems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Raises BusyError naming the owner, at once; OSError if the file cannot be made."""
        import fcntl  # POSIX only

        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise BusyError(
                f"{self.path.parent}: in use by {owner}; expected no other run in it. "
                "Wait for it, stop it, or choose another directory."
            ) from None
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(mine).encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let the next one in; the file stays, since removing it would race with who opens it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _owner(fd: int) -> str:
    for _ in range(50):
        time.sleep(0.02)  # who took it an instant ago has yet to write its name
        with suppress(ValueError, KeyError, TypeError):
            facts = json.loads(os.pread(fd, 4096, 0))
            return f"pid {facts['pid']} on host {facts['host']} since {facts['since']}"
    return "another process"
