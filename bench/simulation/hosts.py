"""What a simulated host knows of itself, and of each layer that it pulls. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from bench.simulation.homes import View
from bench.simulation.network import NOBODY
from peili.mirror.membership.directory.upstream_rates import UpstreamFetches

NEVER = -1.0
"""The time of what has not happened."""


class State(Enum):
    """What a transfer does."""

    IDLE = auto()
    WAITING = auto()
    FED = auto()
    UPSTREAM = auto()
    DONE = auto()
    FAILED = auto()


@dataclass(eq=False, slots=True)
class Transfer:
    """A layer on its way to a host."""

    host: int
    layer: int
    row: int
    state: State = State.IDLE
    feeder: int = NOBODY
    home: str = ""
    failed: dict[str, str] = field(default_factory=dict[str, str])
    source: Transfer | None = None
    is_source_whole: bool = False
    claimed_at: float = NEVER
    claimed: float = 0.0
    published: float = -1.0

    def depth(self) -> int:
        """Return over how many hops it got its last bytes: from upstream, or from a host that had everything."""
        hops, transfer = 0, self
        while transfer.source is not None:
            hops += 1
            if transfer.is_source_whole:
                break
            transfer = transfer.source
        return hops


@dataclass(eq=False, slots=True)
class SimulatedHost:
    """A host."""

    number: int
    name: str
    view: View
    upstream: UpstreamFetches
    is_alive: bool = True
    is_denied: bool = False
    next_layer: int = 0
    running: int = 0
    finished: float | None = None
    known_dead: set[str] = field(default_factory=set[str])
    reporting: set[str] = field(default_factory=set[str])
    held: dict[int, Transfer] = field(default_factory=dict[int, Transfer])
