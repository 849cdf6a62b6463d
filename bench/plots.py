"""Draws the rows that have a place on an axis: how figures change as the cluster and the store grow."""

# pyright: reportUnknownMemberType=false
# matplotlib's own annotations leave its keyword arguments open.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.measure import Row, Spread, Unit

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("the plots of bench need matplotlib: pip install 'peili[bench]'") from error

T = TypeVar("T")


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write a plot, SVG or PNG by the name of `file`: a column for each axis, a line of them for each unit.

    Medians, with the least and the most as bars. Raises OSError, and ValueError where no row has a place.
    """
    placed = [row for row in rows if row.place is not None]
    axes = _distinct(row.place.axis for row in placed if row.place is not None)
    units = _distinct(row.unit for row in placed)
    if not placed:
        raise ValueError("there is no row of growth to draw")
    figure = Figure(figsize=(5.5 * len(axes), 4 * len(units)), layout="constrained")
    grid = figure.subplots(len(units), len(axes), squeeze=False, sharey="row")
    for unit, across in zip(units, grid, strict=True):
        for axis, plot in zip(axes, across, strict=True):
            _plot(plot, axis, unit, placed)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _plot(plot: Axes, axis: str, unit: Unit, rows: Sequence[Row]) -> None:
    for what, points in lines(rows, axis, unit).items():
        spreads = [spread for _, spread in points]
        medians = [spread.median for spread in spreads]
        below = [spread.median - spread.least for spread in spreads]
        above = [spread.most - spread.median for spread in spreads]
        plot.errorbar([at for at, _ in points], medians, yerr=[below, above], marker="o", capsize=3, label=what)
    numbers = sorted({row.place.at for row in rows if row.place is not None and row.place.axis == axis})
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.set_xticks(numbers, [f"{number:,}" for number in numbers])
    plot.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    plot.set_xlabel(axis)
    plot.set_ylabel(unit.name)
    plot.grid(visible=True, which="major", alpha=0.3)
    plot.legend(fontsize="small")


def lines(rows: Sequence[Row], axis: str, unit: Unit) -> dict[str, list[tuple[int, Spread]]]:
    """What is drawn in one plot: for each figure its points, from left to right."""
    found: dict[str, list[tuple[int, Spread]]] = {}
    for row in rows:
        if row.place is not None and (row.place.axis, row.unit) == (axis, unit):
            found.setdefault(row.place.what, []).append((row.place.at, Spread.of(row.ours)))
    return {what: sorted(points, key=lambda point: point[0]) for what, points in found.items()}


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
