"""Puts the figures of a run into the documentation: `python -m bench --publish` writes what a test compares.

docs/benchmarks.md has the whole table. README.md has four rows of it, in fewer columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import table

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"

SHOWN_IN_README = (
    "serve 1 GiB, one client",
    "relay 1 GiB, verified",
    "a miss, 8 live peers: median",
    "relaying 32 transfers of 1 GiB: resident at most",
)


def pages(run: Mapping[str, Any]) -> dict[Path, Sequence[str]]:
    """Return the lines of each page that show `run`.

    Raises:
        ValueError: The run was a quick one, or has no such row as README shows.
    """
    if run["quick"]:
        raise ValueError("a quick run measures nothing; publish a full one")
    rows = {row["what"]: row for row in run["rows"]}
    if missing := [what for what in SHOWN_IN_README if what not in rows]:
        raise ValueError(f"README shows rows that the run does not have: {'; '.join(missing)}")
    return {
        ROOT / "docs" / "benchmarks.md": table.compact(run["rows"]),
        ROOT / "README.md": table.compact([rows[what] for what in SHOWN_IN_README], table.FIGURES),
    }


def with_table(text: str, lines: Sequence[str]) -> str:
    """Return `text` with `lines` between its marks.

    Raises:
        ValueError: A mark is missing, or is there more than once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"a page needs one {BEGIN} and one {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}\n", *lines, f"\n{END}{after}"])


def publish(run: Mapping[str, Any]) -> list[Path]:
    """Write the pages and return their paths. Raises ValueError as `pages` and `with_table` do, and OSError."""
    written = {file: with_table(file.read_text(encoding="utf-8"), lines) for file, lines in pages(run).items()}
    for file, text in written.items():
        file.write_text(text, encoding="utf-8")
    return [*written]
