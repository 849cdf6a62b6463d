"""Kinds of metrics, as plain values; prometheus.py converts them.

The mirror counts on its loop, by incrementing a value in a dict. Any thread may read the values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram.

    Attributes:
        buckets: Upper bounds, each with the number of values that are not above it. The last bound is infinity.
        total: The sum of all values.
    """

    buckets: Sequence[tuple[float, int]]
    total: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, named by the conventions of Prometheus, in base units (seconds, bytes).

    Attributes:
        name: The name of the metric.
        kind: The type of the metric.
        help: What it measures.
        labels: The names of its labels.
        samples: The values, by the values of the labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Mapping[Labels, float | Distribution]


class Counts:
    """A counter with labels.

    Args:
        name: The name of the metric.
        text: What it measures.
        labels: The names of its labels.
        initial: Label values that start at 0, so that their first increment is visible.
    """

    def __init__(self, name: str, text: str, *labels: str, initial: Sequence[Labels] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._values: dict[Labels, float] = dict.fromkeys(initial, 0)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Add `amount` to the series with the label values `labels`."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> float:
        """Return the value of the series with the label values `labels`."""
        return self._values.get(labels, 0)

    def total(self) -> float:
        """Return the sum of all series."""
        return sum(self._values.values())

    def family(self) -> Family:
        """Return the current values."""
        return Family(self._name, "counter", self._text, self._labels, dict(self._values))


class Durations:
    """A histogram of seconds, with labels.

    Args:
        name: The name of the metric.
        text: What it measures.
        bounds: The upper bounds of the buckets, without infinity.
        labels: The names of its labels.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._series: dict[Labels, tuple[list[int], list[float]]] = {}
        if not labels:
            self._series[()] = self._new()

    def add(self, seconds: float, *labels: str) -> None:
        """Add one duration to the series with the label values `labels`."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._new()
        counts, total = series
        counts[bisect_left(self._bounds, seconds)] += 1
        total[0] += seconds

    def family(self) -> Family:
        """Return the current values."""
        samples = {labels: self._distribution(*series) for labels, series in dict(self._series).items()}
        return Family(self._name, "histogram", self._text, self._labels, samples)

    def _new(self) -> tuple[list[int], list[float]]:
        return [0] * (len(self._bounds) + 1), [0.0]

    def _distribution(self, counts: list[int], total: list[float]) -> Distribution:
        bounds = (*self._bounds, float("inf"))
        return Distribution(list(zip(bounds, accumulate(list(counts)), strict=True)), total[0])
