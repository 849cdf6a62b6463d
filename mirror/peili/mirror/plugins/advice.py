"""What a router is asked (`Want`), and its answers: `Feed`, `Wait` or `Upstream`, with a `Lease`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Holder


@dataclass(frozen=True, slots=True)
class Want:
    """What a host needs.

    Attributes:
        key: The key of the content.
        offset: The first byte that it needs.
        failed: The ids of the peers that can't be used, each with the reason, a `FailureReason`.
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
    """Tells the router what becomes of its answer. This one records nothing; a router returns its own subclass.

    Used on the mirror's loop only. After `release`, there is no more progress.
    """

    def progress(self, offset: int) -> None:
        """Record that the runtime received all bytes up to `offset`.

        Called often, in the task of the runtime's request, so it must not block.
        """

    async def release(self, reason: str) -> None:
        """Record that the answer is no longer used. Called exactly once in any case. Must not raise.

        It runs in its own task, so neither the runtime's request nor its end waits for it or cancels it. It may run at
        the same time as the release of other leases, and as an `acquire` for the same key, even by the same request. It
        is cancelled after ``limits.lookup_timeout`` seconds. Draining the mirror waits for it. So does exiting the
        mirror, before the router is exited, for up to ``limits.stop_timeout`` seconds; then it is cancelled. Only a
        response that continues after the mirror was exited releases its lease later, and in its own task.

        Args:
            reason: A `LeaseEnd` or a `FailureReason`.
        """


@dataclass(frozen=True, slots=True)
class Feed:
    """Get the content from one of `holders`, best first."""

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """No peer has the content: let the runtime go upstream."""

    lease: Lease = field(default_factory=Lease)
