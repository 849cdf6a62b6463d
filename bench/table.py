"""Formats rows as a Markdown table.

The rows come from the document of a run (bench/report.py), so the table that a run prints is that of its file.
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
FIGURES = ("what", "ours", "reference", "against")
"""The columns of the shortest table."""
_MET = {None: "", True: "yes", False: "NO"}


def header() -> str:
    """Return the first two lines."""
    return f"{_padded(_NAMES)}\n|{'|'.join('-' * (width + 2) for _, width in _COLUMNS)}|"


def line(row: Object) -> str:
    """Return one row."""
    return _padded(_cells(row))


def compact(rows: Sequence[Object], columns: Sequence[str] = _NAMES) -> list[str]:
    """Return the lines of a whole table for a page, without padding."""
    chosen = [_NAMES.index(name) for name in columns]
    cells = [_NAMES, *map(_cells, rows)]
    head, *lines = (_joined([each[column] for column in chosen]) for each in cells)
    return [head, f"|{'---|' * len(columns)}", *lines]


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
    """Return a line that says how many budgets are met and names the others."""
    judged = [row for row in rows if row["met"] is not None]
    missed = [row["what"] for row in judged if not row["met"]]
    text = f"budgets: {len(judged) - len(missed)} of {len(judged)} met"
    return f"{text}; not: {'; '.join(missed)}" if missed else text


def notes(rows: Sequence[Object]) -> str:
    """Return a line that names the figures which the client limits, not the server; empty if there are none."""
    limited = [
        f"{row['what']} ({', '.join(row['client']['limited'])})"
        for row in rows
        if row["client"] and row["client"]["limited"]
    ]
    return f"the client was the limit in: {'; '.join(limited)}" if limited else ""


def number(value: float) -> str:
    """Return `value` with three significant digits, or all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _figure(samples: Object | None, unit: str) -> str:
    """Return the median with its unit; empty without samples."""
    return "" if samples is None else f"{number(samples['median'])} {unit}"


def _range(spread: Object | None) -> str:
    """Return the quartiles; empty after a single round, or if both look the same with the digits shown."""
    if spread is None or number(spread["lower"]) == number(spread["upper"]):
        return ""
    return f"{number(spread['lower'])} … {number(spread['upper'])}"


def _padded(cells: Sequence[str]) -> str:
    return _joined([cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)])


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
