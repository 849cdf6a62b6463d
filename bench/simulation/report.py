"""The table of the simulation in docs/cold-start.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.simulation.scenarios import Outcome

BEGIN, END = "<!-- simulation: begin, written by `make simulate` -->", "<!-- simulation: end -->"
_HEADER = (
    "| hosts | what happens | copies | median | last | depth | uploads, 95 % | most | messages | busiest home |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(outcome: Outcome) -> str:
    """Return the line of the table for a simulation."""
    is_any = bool(outcome.times.size)
    cells = (
        f"{outcome.scenario.hosts:,}",
        outcome.scenario.name,
        f"{outcome.copies:.2f}",
        f"{np.median(outcome.times):.2f}" if is_any else "",
        f"{outcome.times[-1]:.2f}{f', {outcome.failed} not done' if outcome.failed else ''}" if is_any else "none done",
        f"{outcome.depths.max():.0f}",
        f"{np.percentile(outcome.uploads, 95):.2f}",
        f"{outcome.uploads[-1]:.2f}",
        f"{outcome.messages:.0f}",
        f"{outcome.busiest:,.0f}/s",
    )
    return "| " + " | ".join(cells) + " |"


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown."""
    return "\n".join((_HEADER, *map(line, outcomes)))


def write_table(outcomes: Sequence[Outcome], page: Path) -> None:
    """Replace the table between the two marks in a page.

    Raises:
        ValueError: The page has no such marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} does not have the lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{after}", encoding="utf-8")
