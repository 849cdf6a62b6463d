"""The rows as people read them: Markdown, a line as soon as a row is there."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure import Row, Spread, Unit

_COLUMNS = (
    ("what", 60),
    ("ours", 12),
    ("reference", 12),
    ("against", 29),
    ("ratio", 6),
    ("spread", 15),
    ("budget", 9),
    ("met", 3),
)
_BUSY = 0.9
"""Of a second, how much of it a client may compute, and still have measured somebody else."""
_MET = {None: "", True: "yes", False: "NO"}


def header() -> str:
    """The first two lines."""
    return f"{_line([name for name, _ in _COLUMNS])}\n|{'|'.join('-' * (width + 2) for _, width in _COLUMNS)}|"


def line(row: Row) -> str:
    """One row."""
    ratio, ours = row.ratio, Spread.of(row.ours)
    return _line(
        [
            row.what,
            figure(row.ours, row.unit),
            figure(row.reference, row.unit),
            row.against,
            "" if ratio is None else number(ratio.value),
            _range(ours.least, ours.most) if ratio is None else _range(ratio.low, ratio.high),
            "" if row.budget is None else row.budget.text(row.unit),
            _MET[row.met],
        ]
    )


def verdict(rows: Sequence[Row]) -> str:
    """How many budgets are met, and which are not; and which rows would be better with a faster client."""
    judged = [row for row in rows if row.met is not None]
    missed = [row.what for row in judged if not row.met]
    busy = [row.what for row in rows if row.client is not None and row.client > _BUSY]
    told = f"budgets: {len(judged) - len(missed)} of {len(judged)} met"
    if missed:
        told += f"; not: {'; '.join(missed)}"
    return f"{told}\nthe client itself was the limit in: {'; '.join(busy)}" if busy else told


def figure(samples: Sequence[float], unit: Unit) -> str:
    """The median with its unit; nothing where there are no samples."""
    return f"{number(Spread.of(samples).median)} {unit.name}" if samples else ""


def number(value: float) -> str:
    """Three digits that count, or all of those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _range(low: float, high: float) -> str:
    return "" if low == high else f"{number(low)} … {number(high)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))} |"
