"""What a router is asked (`Want`), and its answers: `Feed`, `Wait` or `Upstream`, with a `Lease`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Holder


@dataclass(frozen=True, slots=True)
class Want:
    """What a host is after: the content of `key` from byte `offset` on.

    `failed` maps the id of each peer that can't be used to the reason, a `FailureReason`.
    """

    key: Key
    offset: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


class LeaseEnd(StrEnum):
    """Why a lease is released, if no peer failed; see `FailureReason` for the other reasons."""

    DONE = "done"
    """The runtime has what it wanted, or does as the router advised."""
    GONE = "gone"
    """The runtime disconnected."""


class Lease:
    """What a router lends with its advice, so that it can see what became of it. This one records nothing.

    Used on the mirror's loop only. `progress` is called often, in the task of the runtime's request, and must not
    block; `release` is called exactly once, whatever happened, and must not raise. There is no progress after it.
    """

    def progress(self, offset: int) -> None:
        """Bytes up to `offset` have been handed to the runtime."""

    async def release(self, reason: str) -> None:
        """The advice is no longer used; `reason` is a `LeaseEnd` or a `FailureReason`.

        Called in a task of its own, which neither the runtime's leaving nor the end of its request ends, and for which
        the request does not wait. So it may run beside other leases' releases, and beside an `acquire` for the same
        key, by this very request too. Cancelled after ``limits.lookup_timeout`` seconds (1 by default). Draining waits
        for it, and so does leaving the mirror, before the router is left: at most ``limits.stop_timeout`` seconds, then
        it is cancelled. Only an answer that a host lets outlast the mirror releases later, and in its own task.
        """


@dataclass(frozen=True, slots=True)
class Feed:
    """Stream from one of `holders`, best first."""

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """Nobody near has it: let the runtime go upstream."""

    lease: Lease = field(default_factory=Lease)
