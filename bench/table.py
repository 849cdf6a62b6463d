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
_MET = {None: "", True: "yes", False: "NO"}


def header() -> str:
    """The first two lines."""
    return f"{_line([name for name, _ in _COLUMNS])}\n|{'|'.join('-' * (width + 2) for _, width in _COLUMNS)}|"


def line(row: Row) -> str:
    """One row."""
    ratio = row.ratio
    return _line(
        [
            row.what,
            figure(row.ours, row.unit),
            figure(row.reference, row.unit),
            row.against,
            "" if ratio is None else number(ratio.median),
            _range(Spread.of(row.ours) if ratio is None else ratio),
            "" if row.budget is None else row.budget.text(row.unit),
            _MET[row.met],
        ]
    )


def verdict(rows: Sequence[Row]) -> str:
    """How many budgets are met, and which are not."""
    judged = [row for row in rows if row.met is not None]
    missed = [row.what for row in judged if not row.met]
    told = f"budgets: {len(judged) - len(missed)} of {len(judged)} met"
    return f"{told}; not: {'; '.join(missed)}" if missed else told


def figure(samples: Sequence[float], unit: Unit) -> str:
    """The median with its unit; nothing where there are no samples."""
    return f"{number(Spread.of(samples).median)} {unit.name}" if samples else ""


def number(value: float) -> str:
    """Three digits that count, or all of those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _range(spread: Spread) -> str:
    return "" if spread.least == spread.most else f"{number(spread.least)} … {number(spread.most)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))} |"
