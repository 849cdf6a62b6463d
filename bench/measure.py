"""Taking turns, and what a row of the table is: samples of ours and of a reference, a ratio and a budget.

Nothing here knows what is measured.
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
"""Of a second. A client that is computing for longer is what limits the figure."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What figures of a row count, and whether more of it is better."""

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
MEBIBYTES = Unit("MiB", more_is_better=False)


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some samples, and the quartiles: half of the samples lie from `lower` to `upper`."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of one sample or more. Between two samples a quartile is interpolated."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, method="inclusive")
        return cls(median, lower, upper)


class Budget(ABC):
    """What DESIGN.md asks of a row."""

    @abstractmethod
    def met(self, row: Row) -> bool:
        """Whether the row keeps to it: its median, or the ratio of its medians."""

    @abstractmethod
    def text(self, unit: Unit) -> str:
        """As the table shows it."""


@dataclass(frozen=True, slots=True)
class RatioOf(Budget):
    """At least so many times as good as the reference."""

    least: float

    @override
    def met(self, row: Row) -> bool:
        return row.ratio is not None and row.ratio >= self.least

    @override
    def text(self, unit: Unit) -> str:
        return f"≥ {self.least:g} x"


@dataclass(frozen=True, slots=True)
class AtMost(Budget):
    """Our figure is no more than this, in the row's unit."""

    most: float

    @override
    def met(self, row: Row) -> bool:
        return Spread.of(row.ours).median <= self.most

    @override
    def text(self, unit: Unit) -> str:
        return f"≤ {self.most:g} {unit.name}"


@dataclass(frozen=True, slots=True)
class AtMostMore(Budget):
    """Our figure is no more than this above the reference, in the row's unit."""

    most: float

    @override
    def met(self, row: Row) -> bool:
        return statistics.median(row.ours) - statistics.median(row.reference) <= self.most

    @override
    def text(self, unit: Unit) -> str:
        return f"≤ +{self.most:g} {unit.name}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where on a plot of growth a row stands: `what` grows along `axis`, and is at `at`."""

    axis: str
    at: int
    what: str


@dataclass(frozen=True, slots=True)
class Busy:
    """Of a second, how much the client was computing, in each round of either side."""

    ours: tuple[float, ...]
    reference: tuple[float, ...] = ()

    @property
    def limited(self) -> tuple[str, ...]:
        """Of which sides the figure is more the client's than the server's: both could be better than is seen."""
        sides = {"ours": self.ours, "reference": self.reference}
        return tuple(side for side, taken in sides.items() if taken and statistics.median(taken) > _BUSY)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a sample of ours for each round and, side by side with it, one of what it is held against.

    Attributes: `group` is the name by which the row is chosen; `against` names the reference, if there is one; `client`
    is how busy the client was where it could have been what limits the figure.
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
        """How many times as good as the reference ours is, of the medians: above 1 ours is better, whatever the unit.

        None without a reference, and where a median is below what the clock can tell from nothing.
        """
        if not self.reference:
            return None
        return self._times_as_good(statistics.median(self.ours), statistics.median(self.reference))

    @property
    def spread(self) -> Spread | None:
        """Of the ratios round by round, or of our figures where there is no reference.

        The ratio of the medians need not lie in it. None where there is a reference and a figure of 0.
        """
        if not self.reference:
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
        """Whether the budget is met; None where there is none."""
        return None if self.budget is None else self.budget.met(self)


def take_turns(sides: Sequence[Callable[[], T]], *, rounds: int, warm_up: bool = True) -> list[tuple[T, ...]]:
    """For each side a sample of every round. Whoever began a round ends the next: a noisy machine disturbs all alike.

    With `warm_up`, one round before these does not count.
    """
    if warm_up:
        for side in sides:
            side()
    samples: list[list[T]] = [[] for _ in sides]
    for turn in range(rounds):
        order: Literal[1, -1] = 1 if turn % 2 == 0 else -1
        for side, taken in [*zip(sides, samples, strict=True)][::order]:
            taken.append(side())
    return [tuple(taken) for taken in samples]
