"""Rows of the table, and how samples are taken in turns.

A row has samples of peili and of a reference, their ratio, and a budget. This module does not know what is measured.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from typing_extensions import override

T = TypeVar("T")

_BUSY = 0.9
"""A client that computes for a larger part of the time limits the figure."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a row's figures, and whether a larger figure is better."""

    name: str
    more_is_better: bool


MB_PER_SECOND = Unit("MB/s", more_is_better=True)
PER_SECOND = Unit("req/s", more_is_better=True)
MILLISECONDS = Unit("ms", more_is_better=False)
SECONDS = Unit("s", more_is_better=False)
CPU_SECONDS = Unit("CPU s", more_is_better=False)
CPU_MILLISECONDS = Unit("CPU ms", more_is_better=False)
BLOBS = Unit("blobs", more_is_better=False)
MEGABYTES = Unit("MB", more_is_better=False)
TESTS = Unit("tests", more_is_better=True)
COPIES = Unit("copies", more_is_better=False)
HOSTS = Unit("hosts", more_is_better=False)
TIMES = Unit("x", more_is_better=False)
PERCENT = Unit("CPU %", more_is_better=False)
TIMES_LINK = Unit("x F/B", more_is_better=False)
"""Multiples of the time that a link with the rate B needs for F bytes."""
MEBIBYTES = Unit("MiB", more_is_better=False)
MESSAGES = Unit("messages", more_is_better=False)
MESSAGES_PER_SECOND = Unit("messages/s", more_is_better=False)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the quartiles of some samples. Half of the samples lie between `lower` and `upper`."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of at least one sample. A quartile between two samples is interpolated."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, method="inclusive")
        return cls(median, lower, upper)


class Budget(ABC):
    """The goal that the project sets for a row."""

    @abstractmethod
    def met(self, row: Row) -> bool:
        """Return whether the row's median, or the ratio of its medians, is within the budget."""

    @abstractmethod
    def text(self, unit: Unit) -> str:
        """Return the budget as the table shows it."""


@dataclass(frozen=True, slots=True)
class RatioOf(Budget):
    """The row's ratio is at least `least`."""

    least: float

    @override
    def met(self, row: Row) -> bool:
        return row.ratio is not None and row.ratio >= self.least

    @override
    def text(self, unit: Unit) -> str:
        return f"≥ {self.least:g} x"


@dataclass(frozen=True, slots=True)
class AtMost(Budget):
    """Our figure is at most `most`, in the row's unit."""

    most: float

    @override
    def met(self, row: Row) -> bool:
        return Spread.of(row.ours).median <= self.most

    @override
    def text(self, unit: Unit) -> str:
        return f"≤ {self.most:g} {unit.name}"


@dataclass(frozen=True, slots=True)
class AtMostMore(Budget):
    """Our figure exceeds the reference by at most `most`, in the row's unit."""

    most: float

    @override
    def met(self, row: Row) -> bool:
        return statistics.median(row.ours) - statistics.median(row.reference) <= self.most

    @override
    def text(self, unit: Unit) -> str:
        return f"≤ +{self.most:g} {unit.name}"


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a row in a plot of growth.

    Attributes:
        axis: The label of the horizontal axis.
        at: The value on that axis.
        what: The line in the plot.
    """

    axis: str
    at: int
    what: str


@dataclass(frozen=True, slots=True)
class Busy:
    """The part of the time in which the client computed, in each round of each side."""

    ours: tuple[float, ...]
    reference: tuple[float, ...] = ()

    @property
    def limited(self) -> tuple[str, ...]:
        """The sides whose figure the client limits. Their servers could be better than the figure."""
        sides = {"ours": self.ours, "reference": self.reference}
        return tuple(side for side, taken in sides.items() if taken and statistics.median(taken) > _BUSY)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        group: The name with which the command line selects the row.
        what: What was measured.
        unit: The unit of the samples.
        ours: A sample of peili for each round.
        against: The name of the reference; empty if there is none.
        reference: A sample of the reference for each round, or fewer if the reference takes long.
        budget: The budget, if there is one.
        place: The position in a plot of growth, if there is one.
        client: How busy the client was, if the client could limit the figure.
    """

    group: str
    what: str
    unit: Unit
    ours: tuple[float, ...]
    against: str = ""
    reference: tuple[float, ...] = ()
    budget: Budget | None = None
    place: Place | None = None
    client: Busy | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as good as the reference peili is, by the medians. Above 1, peili is better.

        It is None without a reference, and if a median is 0 because the clock is too coarse.
        """
        if not self.reference:
            return None
        return self._times_as_good(statistics.median(self.ours), statistics.median(self.reference))

    @property
    def spread(self) -> Spread | None:
        """The spread of the ratios of each round, or of our figures if the reference was not measured in each round.

        The ratio of the medians can lie outside of it. It is None if there is a reference and a sample is 0.
        """
        if len(self.reference) < len(self.ours):
            return Spread.of(self.ours)
        pairs = [self._times_as_good(*pair) for pair in zip(self.ours, self.reference, strict=True)]
        ratios = [pair for pair in pairs if pair is not None]
        return Spread.of(ratios) if len(ratios) == len(pairs) else None

    def _times_as_good(self, ours: float, theirs: float) -> float | None:
        if not (ours and theirs):
            return None
        return ours / theirs if self.unit.more_is_better else theirs / ours

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None if there is no budget."""
        return None if self.budget is None else self.budget.met(self)


def take_turns(sides: Sequence[Callable[[], T]], *, rounds: int, warm_up: bool = True) -> list[tuple[T, ...]]:
    """Measure all sides in each round, so that a noisy machine disturbs all of them alike.

    Args:
        sides: Each takes one sample of its side. Their order is reversed in every second round.
        rounds: The number of samples of each side.
        warm_up: Whether to run one round first that does not count. A single round only shows that the sides run, and
            needs none.

    Returns:
        The samples of each side.
    """
    if warm_up and rounds > 1:
        for side in sides:
            side()
    samples: list[list[T]] = [[] for _ in sides]
    for turn in range(rounds):
        order: Literal[1, -1] = 1 if turn % 2 == 0 else -1
        for side, own_samples in [*zip(sides, samples, strict=True)][::order]:
            own_samples.append(side())
    return [tuple(own_samples) for own_samples in samples]
