"""One key that hosts are fetching: which hosts, how far each of them is, and who feeds whom. No decisions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Fetcher:
    """A host that fetches the key.

    Attributes:
        host: The id of the host.
        zone: Its zone, if it is known.
        since: When it asked first.
        heard: When the home last heard from it about this key.
        grew: When its bytes last became more; `since` if it has none.
        offset: How many bytes from the start it has.
        feeders: The hosts that it was told to read from. Several only if all of them have the whole content.
        is_root: Whether its runtime was sent upstream, so that others may wait for it.
        can_share: Whether it can feed others while it receives.
        is_whole: Whether it has the whole content.
        is_silent: Whether another host got no answer from it since it was last heard.
        is_superseded: Whether it should ask again.
    """

    host: str
    zone: str | None
    since: float
    heard: float
    grew: float
    offset: int = 0
    feeders: tuple[str, ...] = ()
    is_root: bool = False
    can_share: bool = False
    is_whole: bool = False
    is_silent: bool = False
    is_superseded: bool = False


@dataclass(eq=False, slots=True)
class Fetch:
    """A key that is being fetched.

    Attributes:
        key: The key as text.
        size: The size in bytes, if a host has said it.
        hosts: The hosts that fetch it, by id, in the order in which they asked.
        children: For each feeder, the hosts that were told to read from it.
        barred: Hosts that feed nobody while they receive, because wrong bytes went over a link of theirs.
    """

    key: str
    size: int | None = None
    hosts: dict[str, Fetcher] = field(default_factory=dict[str, Fetcher])
    children: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    barred: set[str] = field(default_factory=set[str])

    def feed(self, fetcher: Fetcher, feeders: tuple[str, ...]) -> None:
        """Record that `fetcher` reads from `feeders` from now on, and from nobody else."""
        for old in fetcher.feeders:
            children = self.children[old]
            children.discard(fetcher.host)
            if not children:
                del self.children[old]
        fetcher.feeders = feeders
        for new in feeders:
            self.children.setdefault(new, set()).add(fetcher.host)

    def remove(self, host: str) -> None:
        """Forget that `host` fetches the key. Its children keep it as their feeder."""
        fetcher = self.hosts.pop(host, None)
        if fetcher is not None:
            self.feed(fetcher, ())

    def count_children(self, host: str) -> int:
        """Return how many hosts were told to read from `host`."""
        return len(self.children.get(host, ()))

    def path(self, host: str) -> Iterator[str]:
        """Yield `host`, its feeder, and so on to the root. Several feeders are all whole, so one is enough."""
        current: str | None = host
        while current is not None:
            yield current
            fetcher = self.hosts.get(current)
            current = fetcher.feeders[0] if fetcher is not None and not fetcher.is_whole and fetcher.feeders else None

    def below(self, host: str) -> Iterator[tuple[str, int]]:
        """Yield the hosts that get the content through `host`, each with its distance from `host`."""
        level, distance = self.children.get(host, set()), 1
        while level:
            for each in level:
                yield each, distance
            level = {child for each in level for child in self.children.get(each, ())}
            distance += 1
