"""The rows as people read them: Markdown. What is shown is what the document says (bench/report.py), so that a table of
a run and one of its file can't differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]
"""A row as `report.as_object` makes it."""

_COLUMNS = (
    ("what", 60),
    ("ours", 12),
    ("reference", 12),
    ("against", 29),
    ("ratio", 6),
    ("middle half", 15),
    ("budget", 9),
    ("met", 3),
)
_NAMES = tuple(name for name, _ in _COLUMNS)
_MET = {None: "", True: "yes", False: "NO"}


def header() -> str:
    """The first two lines."""
    return f"{_padded(_NAMES)}\n|{'|'.join('-' * (width + 2) for _, width in _COLUMNS)}|"


def line(row: Object) -> str:
    """One row."""
    return _padded(_cells(row))


def compact(rows: Sequence[Object]) -> list[str]:
    """The lines of all of it for a document, where nothing is padded."""
    return [_joined(_NAMES), f"|{'---|' * len(_NAMES)}", *(_joined(_cells(row)) for row in rows)]


def _cells(row: Object) -> Sequence[str]:
    return (
        row["what"],
        _figure(row["ours"], row["unit"]),
        _figure(row["reference"], row["unit"]),
        row["against"] or "",
        "" if row["ratio"] is None else number(row["ratio"]),
        _range(row["spread"]),
        row["budget"] or "",
        _MET[row["met"]],
    )


def verdict(rows: Sequence[Object]) -> str:
    """How many budgets are met, and which are not."""
    judged = [row for row in rows if row["met"] is not None]
    missed = [row["what"] for row in judged if not row["met"]]
    told = f"budgets: {len(judged) - len(missed)} of {len(judged)} met"
    return f"{told}; not: {'; '.join(missed)}" if missed else told


def notes(rows: Sequence[Object]) -> str:
    """Which figures are more the client's than the server's; nothing where there are none."""
    limited = [
        f"{row['what']} ({', '.join(row['client']['limited'])})"
        for row in rows
        if row["client"] and row["client"]["limited"]
    ]
    return f"the client was the limit in: {'; '.join(limited)}" if limited else ""


def number(value: float) -> str:
    """Three digits that count, or all of those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _figure(samples: Object | None, unit: str) -> str:
    """The median with its unit; nothing where there are no samples."""
    return "" if samples is None else f"{number(samples['median'])} {unit}"


def _range(spread: Object | None) -> str:
    """The quartiles; nothing where there was one round, or where the digits that are shown are the same."""
    if spread is None or number(spread["lower"]) == number(spread["upper"]):
        return ""
    return f"{number(spread['lower'])} … {number(spread['upper'])}"


def _padded(cells: Sequence[str]) -> str:
    return _joined([cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)])


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
