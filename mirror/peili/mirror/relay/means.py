"""What a transfer is about, and what transfers work with. Values only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from peili.mirror.limits import Limits
from peili.mirror.metrics import Metrics
from peili.mirror.outlet import Outlet
from peili.mirror.peerclient import PeerClient
from peili.mirror.ranges import ByteRange
from peili.mirror.references import Digest
from peili.mirror.relay.blame import Blame
from peili.mirror.relay.hashing import Hasher
from peili.mirror.relay.memory import Memory
from peili.mirror.relay.peer_health import PeerHealth
from peili.mirror.relay.releases import Releases
from peili.mirror.relay.sizes import Sizes
from peili.mirror.router import Router
from peili.mirror.store import Store


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is to be fetched: the content of `digest`, which peers have at `path`; all of it, or the part `wanted`.

    Up to `ahead` bytes are collected and verified before the first one is given out.
    """

    digest: Digest
    path: str
    wanted: ByteRange | None
    ahead: int


@dataclass(frozen=True, slots=True)
class Means:
    """What transfers work with."""

    router: Router
    store: Store
    client: PeerClient
    blame: Blame
    health: PeerHealth
    sizes: Sizes
    hasher: Hasher
    memory: Memory
    releases: Releases
    limits: Limits
    verify: bool
    log: logging.Logger
    metrics: Metrics


class Sink(Protocol):
    """Where a body goes: a door's reply. Its errors (OSError, TimeoutError) are the runtime's."""

    @property
    def outlet(self) -> Outlet | None:
        """The way to the runtime's socket past ASGI, where there is one."""

    async def send(self, data: bytes | memoryview) -> None:
        """More of the body; `data` may be overwritten once this returns."""
