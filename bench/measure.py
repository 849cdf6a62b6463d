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
BLOBS = Unit("blobs", more_is_better=False)
MEBIBYTES = Unit("MiB", more_is_better=False)


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some samples, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of one sample or more."""
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as good as the reference ours is: above 1 ours is better, whatever the unit.

    `value` is that of the two medians, which stand beside it; between `low` and `high` are the middle half of the
    single rounds' ratios.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], reference: Sequence[float], unit: Unit) -> Ratio:
        """Of samples that are all above zero, one of each for each round."""
        better, worse = (ours, reference) if unit.more_is_better else (reference, ours)
        rounds = [one / other for one, other in zip(better, worse, strict=True)]
        low, _, high = statistics.quantiles(rounds, method="inclusive") if len(rounds) > 1 else rounds * 3
        return cls(statistics.median(better) / statistics.median(worse), low, high)


class Budget(ABC):
    """What DESIGN.md asks of a row."""

    @abstractmethod
    def met(self, row: Row) -> bool:
        """Whether the row's medians keep to it."""

    @abstractmethod
    def text(self, unit: Unit) -> str:
        """As the table shows it."""


@dataclass(frozen=True, slots=True)
class RatioOf(Budget):
    """At least so many times as good as the reference."""

    least: float

    @override
    def met(self, row: Row) -> bool:
        return row.ratio is not None and row.ratio.value >= self.least

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
class Place:
    """Where on a plot of growth a row stands: `what` grows along `axis`, and is at `at`."""

    axis: str
    at: int
    what: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a sample of ours for each round and, side by side with it, one of what it is held against.

    Attributes: `group` is the name by which the row is chosen; `against` names the reference, if there is one;
    `client` is which part of the time the client that ours was measured with was computing, where that was noted.
    """

    group: str
    what: str
    unit: Unit
    ours: tuple[float, ...]
    against: str = ""
    reference: tuple[float, ...] = ()
    budget: Budget | None = None
    place: Place | None = None
    client: float | None = None

    @property
    def ratio(self) -> Ratio | None:
        """None without a reference, and where a figure is below what the clock can tell from nothing."""
        if not self.reference or not all((*self.ours, *self.reference)):
            return None
        return Ratio.of(self.ours, self.reference, self.unit)

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
