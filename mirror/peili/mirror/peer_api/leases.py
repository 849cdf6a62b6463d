"""What hosts and a home say to each other about who fetches a key from upstream, and who feeds whom.

A host asks with a `ClaimRequest` and gets a `Grant`. While it receives, it sends a `LeaseReport` now and then. A feeder
is the host that another one reads from; a root is a host whose runtime fetches from upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from peili.mirror.peer_api.directory import KnownHolder


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A host needs the content of a key. It asks at the start of a transfer, and whenever it needs another source.

    Attributes:
        host: The id of the host.
        key: The key as text.
        offset: The first byte that it needs.
        size: The size of the whole content in bytes, if the host knows it.
        can_share: Whether it can show the content to others while it arrives.
        failed: The ids of hosts that it can't use, each with the reason, a `FailureReason`.
        upstream_rate: The best rate in bytes per second at which it has lately received anything from upstream.
    """

    host: str
    key: str
    offset: int = 0
    size: int | None = None
    can_share: bool = False
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    upstream_rate: float | None = None


@dataclass(frozen=True, slots=True)
class FeedFrom:
    """Read from one of `holders`, best first. There is at least one. If one is not complete, it is the only one."""

    holders: tuple[KnownHolder, ...]


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Ask again after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GoUpstream:
    """Let the runtime fetch the content from upstream."""


Grant: TypeAlias = FeedFrom | WaitFor | GoUpstream


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """What became of one grant so far.

    Attributes:
        key: The key as text.
        offset: The host has received all bytes before this one.
        feeder: The id of the host that it reads from; None if it reads from none.
        end: Why it no longer uses the grant, a `LeaseEnd` or a `FailureReason`; None while it does.
        source_available: How many bytes the feeder had when it last said so, if it is not complete.
    """

    key: str
    offset: int
    feeder: str | None = None
    end: str | None = None
    source_available: int | None = None
