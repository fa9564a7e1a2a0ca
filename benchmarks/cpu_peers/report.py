"""Write what was measured into the documentation: tables and a picture of every machine.

    python -m benchmarks.cpu_peers.report [RESULT.json …]

Without names it is every file in benchmarks/results/peers. Nothing is measured; what stands between
the two markers of the page is replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import figures, pictures, tables

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results" / "peers"
BEGIN, END = "<!-- peers: written by benchmarks.cpu_peers.report -->", "<!-- peers: end -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="default: benchmarks/results/peers")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--no-picture", action="store_true", help="tables only: no matplotlib")
    a = parser.parse_args(argv)
    files = a.results or sorted(RESULTS.glob("*.json"))
    if not files:
        parser.error(f"no result in {RESULTS}. Run: make bench-peers")
    try:
        lines = [line for file in files for line in _machine(file, a.page, not a.no_picture)]
        a.page.write_text(spliced(a.page.read_text(encoding="utf-8"), lines), encoding="utf-8")
    except ValueError as error:
        parser.error(str(error))
    print(f"{a.page}: {len(files)} machine{'s' * (len(files) > 1)}")
    return 0


def _machine(file: Path, page: Path, picture: bool) -> list[str]:
    document = figures.read(file)
    name = f"peers-{file.stem}.png"
    if picture:
        pictures.draw(document, page.parent / name)
    return tables.page(document, name)


def spliced(page: str, lines: Sequence[str]) -> str:
    """The page with `lines` between its markers. ValueError without exactly one pair of them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise ValueError(
            f"report: the page has no pair of markers; expected {BEGIN} and {END} once. Add them "
            "where the tables belong."
        )
    body = "\n".join(lines).strip("\n")
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
