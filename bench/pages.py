"""Puts the figures of the kept runs into the documentation: `python -m bench --publish` writes what a test compares.

docs/benchmarks.md has all rows, and the version that each group of them measured. README.md has four rows.
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


def pages(runs: Sequence[Mapping[str, Any]]) -> dict[Path, Sequence[str]]:
    """Return the lines of each page that show `runs`.

    Args:
        runs: What `report.kept` returned.

    Raises:
        ValueError: The runs have no such row as README shows.
    """
    all_rows = [row for run in runs for row in run["rows"]]
    rows = {row["what"]: row for row in all_rows}
    if missing := [what for what in SHOWN_IN_README if what not in rows]:
        raise ValueError(f"README shows rows that no run has: {'; '.join(missing)}")
    return {
        ROOT / "docs" / "benchmarks.md": [*table.compact(all_rows), "", *_versions(runs)],
        ROOT / "README.md": table.compact([rows[what] for what in SHOWN_IN_README], table.FIGURES),
    }


def _versions(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of when each group was measured, and what else the machine had to do before."""
    head = ["| group | measured on | commit | Python | processors | load before |", "|---|---|---|---|---|---|"]
    return head + [
        f"| {', '.join(run['seconds_of'])} | {run['when'][:10]} | {machine['commit'] or ''} | {machine['python']} "
        f"| {machine['processors']} | {machine['load_average']:.1f} |"
        for run in runs
        for machine in [run["machine"]]
    ]


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


def publish(runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the pages and return their paths. Raises ValueError as `pages` and `with_table` do, and OSError."""
    written = {file: with_table(file.read_text(encoding="utf-8"), lines) for file, lines in pages(runs).items()}
    for file, text in written.items():
        file.write_text(text, encoding="utf-8")
    return [*written]
