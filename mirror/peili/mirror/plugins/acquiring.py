"""What `Router.acquire` is asked, and what it answers: from where a host gets content now.

The question is a `Want`. The answer is `Feed`, `Wait` or `Upstream`. A `Lease` then tells the router how the transfer
goes, and how it ends.
"""

from __future__ import annotations

import asyncio
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
        offset: The first byte that the host needs.
        failed: The ids of the peers that cannot be used, each with the reason, a `FailureReason`.
        size: The size of the whole content in bytes, if the host knows it.
        can_share: Whether the host needs the content itself, and can show it to other hosts while it arrives. The
            router may then let other hosts wait for it.
        accepts_in_flight: Whether the host also reads from holders that still receive the content, and waits until
            there is one. If not, the router claims nothing for it, and the answer has complete holders only.
        follows: Whether the manifest that names the content has just come from another host, which may be about to ask
            for the content, too. If nobody has it, that host should go upstream rather than this one: see
            docs/cold-start.md.
    """

    key: Key
    offset: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    size: int | None = None
    can_share: bool = False
    accepts_in_flight: bool = False
    follows: bool = False


class LeaseEnd(StrEnum):
    """Why a lease is released if no peer failed. The other reasons are in `FailureReason`."""

    DONE = "done"
    """The runtime has what it wanted, or goes upstream because the router returned `Upstream`."""
    GONE = "gone"
    """The runtime disconnected."""
    SUPERSEDED = "superseded"
    """The lease was superseded, and the router was asked again."""
    UPSTREAM = "upstream"
    """The runtime goes upstream, although the router returned `Feed`: none of the holders could be used, for example
    because there was no memory. No peer is to blame."""


class Lease:
    """Receives the progress and the end of a transfer for the router. This class ignores them; a router subclasses it.

    Used on the mirror's loop only. `use` and `progress` are not called after `release`.
    """

    def use(self, holder: Holder) -> None:
        """Record that the transfer reads from `holder`. Must not block.

        Called when a holder has sent its first bytes. While it still receives the content, this is called again about
        once a second, with the bytes that it then has.
        """

    async def superseded(self) -> None:
        """Return when the router has a better answer. The caller then calls `Router.acquire` again, at the byte.

        The caller cancels this when it no longer waits for it. By default it never returns.
        """
        await asyncio.get_running_loop().create_future()

    def progress(self, offset: int) -> None:
        """Record that the runtime has received all bytes before `offset`.

        Called often, in the task of the runtime's request, so it must not block.
        """

    async def release(self, reason: str) -> None:
        """Record that the transfer no longer uses the router's answer. Called exactly once. Must not raise.

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
    """Get the content from one of `holders`, best first.

    A holder that is not complete still receives the content. The mirror reads from at most one such holder at a time,
    and asks no other holder while it waits for it. Complete holders are asked first. All holders that are not complete
    must answer as `peer_api.keys` says, so that the mirror finds out whether they wait for bytes themselves.
    """

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """No peer has the content: let the runtime go upstream.

    The lease is released at once, with `LeaseEnd.DONE` when the runtime is sent upstream, or with `LeaseEnd.GONE` if it
    left before, or is not sent because it has wrong bytes. A router that lets other hosts wait for this one learns the
    rest from `Router.advertise`: the content in flight, once its first bytes are there. A router must not wait for
    these bytes for long, because the runtime may be unable to fetch them.
    """

    lease: Lease = field(default_factory=Lease)
