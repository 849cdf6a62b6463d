"""Draws the rows that have a place on an axis: how figures change as the cluster and the store grow."""

# pyright: reportUnknownMemberType=false
# matplotlib's own annotations leave its keyword arguments open.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from bench.measure import AtMost, Row, Spread, Unit

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
    from PIL import Image
except ImportError as error:
    raise ImportError("the plots of bench need matplotlib: pip install 'peili[bench]'") from error

T = TypeVar("T")

_COLORS = 32
"""Colors of a PNG. With all of them it is four times as large, and results are kept in git."""


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write plots into one file: a column of plots for each axis, and a line of them for each unit.

    They show medians, the middle half of the rounds as bars, and budgets as dashed lines.

    Args:
        rows: Those without a place are left out.
        file: SVG if it is named so, else PNG.

    Raises:
        OSError: The file can't be written.
        ValueError: No row has a place.
    """
    placed = [row for row in rows if row.place is not None]
    axes = _distinct(row.place.axis for row in placed if row.place is not None)
    units = _distinct(row.unit for row in placed)
    if not placed:
        raise ValueError("there is no row of growth to draw")
    figure = Figure(figsize=(5.5 * len(axes), 3.6 * len(units)), layout="constrained")
    grid = figure.subplots(len(units), len(axes), squeeze=False, sharex="col", sharey="row")
    for unit, across in zip(units, grid, strict=True):
        across[0].set_ylabel(unit.name)
        for axis, plot in zip(axes, across, strict=True):
            _plot(plot, axis, unit, placed)
    for axis, plot in zip(axes, grid[-1], strict=True):
        plot.set_xlabel(axis)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".svg":
        figure.savefig(file, metadata={"Date": None})
    else:
        figure.savefig(whole := BytesIO(), format="png")
        Image.open(whole).convert("RGB").quantize(_COLORS).save(file, optimize=True)


def _plot(plot: Axes, axis: str, unit: Unit, rows: Sequence[Row]) -> None:
    numbers = sorted({row.place.at for row in rows if row.place is not None and row.place.axis == axis})
    _scale(plot, numbers)
    names = _distinct(row.place.what for row in rows if row.place is not None and row.unit == unit)
    colors = {what: f"C{number}" for number, what in enumerate(names)}  # the same ones in each column
    found = lines(rows, axis, unit)
    for what, points in found.items():
        _line(plot, what, points, colors[what])
    for what, most in limits(rows, axis, unit).items():
        label = f"budget of {what}: {most:g} {unit.name}"
        plot.axhline(most, linestyle="--", linewidth=1, color=colors[what], label=label)
    if found:
        plot.legend(fontsize="small")
    else:
        plot.set_visible(False)


def _scale(plot: Axes, numbers: Sequence[int]) -> None:
    """Make both axes logarithmic, with numbers as people write them."""
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.set_xticks(numbers, [f"{number:,}" for number in numbers])
    plot.xaxis.set_minor_locator(NullLocator())
    plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.yaxis.set_major_formatter(FuncFormatter(_written))
    plot.yaxis.set_minor_formatter(NullFormatter())
    plot.tick_params(labelbottom=True)
    plot.grid(visible=True, which="major", alpha=0.3)


def _written(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _line(plot: Axes, what: str, points: Sequence[tuple[int, Spread]], color: str) -> None:
    medians = [spread.median for _, spread in points]
    below = [spread.median - spread.lower for _, spread in points]
    above = [spread.upper - spread.median for _, spread in points]
    at = [each for each, _ in points]
    plot.errorbar(at, medians, yerr=[below, above], marker="o", capsize=3, label=what, color=color)


def lines(rows: Sequence[Row], axis: str, unit: Unit) -> dict[str, list[tuple[int, Spread]]]:
    """Return what is drawn in one plot: for each figure its points, from left to right."""
    found: dict[str, list[tuple[int, Spread]]] = {}
    for row in rows:
        if row.place is not None and (row.place.axis, row.unit) == (axis, unit):
            found.setdefault(row.place.what, []).append((row.place.at, Spread.of(row.ours)))
    return {what: sorted(points, key=lambda point: point[0]) for what, points in found.items()}


def limits(rows: Sequence[Row], axis: str, unit: Unit) -> dict[str, float]:
    """Return the budget of each line of a plot, if it has an upper limit."""
    return {
        row.place.what: row.budget.most
        for row in rows
        if row.place is not None and (row.place.axis, row.unit) == (axis, unit) and isinstance(row.budget, AtMost)
    }


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
