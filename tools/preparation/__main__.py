"""Makes a virtual environment ready for kdgen; `tools/setup` calls it, `make` calls that.

    python -m tools.preparation --create     the machine's Python: make $VENV
    python -m tools.preparation [extra …]    that environment's Python: install, build
    … --spare                                and go on without packages that cannot be had

What a step prints goes to build/setup.log; people see one line a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tools.preparation.environment import create
from tools.preparation.extension import compile_and_link, summary
from tools.preparation.packages import install
from tools.preparation.stamps import Stamp, build_digest, files_digest, newer_sources
from tools.preparation.steps import Failed, alone, say

SPARE = "--spare"


def main(arguments: Sequence[str]) -> int:
    begun = time.monotonic()
    try:
        with alone():
            if "--create" in arguments:
                create()
            elif prepare([a for a in arguments if a != SPARE], spare=SPARE in arguments):
                say(f"ready in {time.monotonic() - begun:.0f} s: {summary()}")
    except Failed as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130
    return 0


def prepare(extras: Sequence[str], *, spare: bool) -> bool:
    """Install and build what is missing or out of date; False if there was nothing to do."""
    packages = Stamp("packages-" + "-".join(("core", *sorted(extras))), files_digest())
    build = Stamp("build", build_digest())
    if packages.valid() and build.valid() and not newer_sources(build):
        return False
    if not packages.valid():
        install(extras, spare=spare)
        packages.write()
    if not build.valid() or newer_sources(build):
        compile_and_link()
        build.write()
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
