"""The plots of the simulation, beside docs/cold-start.md."""

# pyright: reportUnknownMemberType=false
# matplotlib's own annotations leave its keyword arguments open.

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np

from bench.simulation.network import Numbers
from bench.simulation.scenarios import Outcome

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image
except ImportError as error:
    raise ImportError("the plots of the simulation need matplotlib: pip install 'peili[bench]'") from error

_STYLES = ("-", "--", ":", "-.")
_COLORS = 32
"""Colors of the PNG. With all of them it is four times as large."""


def draw(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw times, depths and uploads of the pulls without faults, and the times of those with faults, into a PNG."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (times, depths), (uploads, bars) = figure.subplots(2, 2)
    plain = [each for each in outcomes if not each.scenario.expected]
    numbers = sorted({each.scenario.hosts for each in plain})
    styles = dict(zip(dict.fromkeys(each.scenario.name for each in plain), cycle(_STYLES), strict=False))
    for each in plain:
        label = f"{each.scenario.hosts:,} hosts, {each.scenario.name}"
        color, style = f"C{numbers.index(each.scenario.hosts)}", styles[each.scenario.name]
        for plot, values in ((times, each.times), (depths, np.sort(each.depths)), (uploads, each.uploads)):
            _share(plot, values, label, color, style)
    times.set_xlabel("time until a host is done, in F/B")
    depths.set_xlabel("hops from the root")
    uploads.set_xlabel("what a host has sent, in images")
    times.legend(fontsize="x-small")
    _draw_faults(bars, [each for each in outcomes if each.scenario.expected and each.times.size])
    figure.savefig(whole := BytesIO(), format="png", dpi=80)
    Image.open(whole).convert("RGB").quantize(_COLORS).save(file, optimize=True)


def _share(plot: Axes, values: Numbers, label: str, color: str, style: str) -> None:
    """Draw which share of the hosts has at most each value."""
    picked = values[np.linspace(0, values.size - 1, min(values.size, 500)).astype(int)]
    plot.plot(picked, np.linspace(0, 100, picked.size), label=label, color=color, linestyle=style, linewidth=1)
    plot.set_ylabel("% of the hosts")
    plot.grid(alpha=0.3)


def _draw_faults(plot: Axes, outcomes: Sequence[Outcome]) -> None:
    names = [each.scenario.name for each in outcomes]
    at = np.arange(len(names))
    plot.barh(at - 0.2, [float(np.median(each.times)) for each in outcomes], height=0.4, label="median host")
    plot.barh(at + 0.2, [float(each.times[-1]) for each in outcomes], height=0.4, label="last host")
    plot.set_yticks(at, names, fontsize="x-small")
    plot.invert_yaxis()
    plot.set_xlabel("time with a fault, in F/B")
    plot.legend(fontsize="x-small")
