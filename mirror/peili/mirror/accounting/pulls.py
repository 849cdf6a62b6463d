"""Groups the requests of the runtime by image, and says when an image was pulled.

No request says that a pull has ended. A pull counts as ended when the runtime has requested nothing of the repository
for some seconds, and what it had to fetch from upstream has arrived in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peili.mirror.accounting.byte_counts import Received
from peili.mirror.metrics.counters import FROM_PEER, FROM_STORE
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.oci.references import Digest
from peili.mirror.support.units import bytes_text, seconds_text, share_text

QUIET = 3.0
"""Seconds without a request after which a pull has ended."""
PATIENCE = 60.0
"""Seconds after which a pull ends although content from upstream has not arrived in the store."""
_MOST_PULLS = 256
_MOST_TAGS = 4
_MOST_PENDING = 1024


@dataclass(slots=True)
class Pull:
    """One pull of an image, or of several images of one repository at the same time.

    Attributes:
        repository: Registry and repository.
        started: When it began, in seconds of the clock.
        last: When something happened last.
        tags: The tags that were requested.
        manifest: The manifest that was requested first.
        received: The bytes so far.
        senders: The peers that sent bytes, with the number.
        pending: What the runtime has to fetch from upstream, and is not in the store yet.
        ended: When the pull ended, in seconds since 1970; None while it runs.
    """

    repository: str
    started: float
    last: float
    tags: dict[str, None] = field(default_factory=dict[str, None])
    manifest: Digest | None = None
    store: int = 0
    peers: int = 0
    upstream: int = 0
    senders: dict[str, int] = field(default_factory=dict[str, int])
    pending: dict[Digest, None] = field(default_factory=dict[Digest, None])
    ended: float | None = None

    @property
    def image(self) -> str:
        """The image as people write it: with its tags if they are known, else with the digest of the manifest."""
        if self.tags:
            return f"{self.repository}:{', :'.join(self.tags)}"
        return self.repository if self.manifest is None else f"{self.repository}@{self.manifest}"

    @property
    def received(self) -> Received:
        """The bytes by where they came from."""
        return Received(self.store, self.peers, self.upstream)

    @property
    def seconds(self) -> float:
        """How long the pull took, or takes so far."""
        return self.last - self.started

    def summary(self) -> str:
        """Return one line for the log."""
        received = self.received
        total = received.store + received.peers + received.upstream
        senders = f" ({', '.join(sorted(self.senders))})" if self.senders else ""
        line = (
            f"pulled {self.image} in {seconds_text(self.seconds)}: {bytes_text(total)}, of which "
            f"{bytes_text(received.peers)} from peers{senders}, {bytes_text(received.store)} from the store and "
            f"{bytes_text(received.upstream)} from upstream; saved {share_text(received.saved)}"
        )
        missing = len(self.pending)
        return f"{line}; left to upstream and not in the store so far: {missing}" if missing else line

    def json(self) -> Mapping[str, Any]:
        """Return the pull for ``/status`` and for logs in JSON."""
        received = self.received
        return {
            "image": self.image,
            "repository": self.repository,
            "seconds": round(self.seconds, 3),
            "bytes_from_store": received.store,
            "bytes_from_peers": received.peers,
            "bytes_from_upstream": received.upstream,
            "saved": received.saved,
            "peers": dict(self.senders),
            "missing": len(self.pending),
            "ended": self.ended,
        }


class Pulls:
    """The pulls that are in progress.

    Args:
        clock: Returns the time in seconds, of which only differences count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pulls: dict[str, Pull] = {}  # by repository
        self._missing: dict[Digest, Pull] = {}  # the pulls that wait for content from upstream

    def __len__(self) -> int:
        """Return the number of pulls in progress."""
        return len(self._pulls)

    def __iter__(self) -> Iterator[Pull]:
        """Yield the pulls in progress."""
        yield from self._pulls.values()

    def note(self, record: RequestRecord, *, is_missed: bool) -> None:
        """Add a request that has ended to its pull."""
        pull = self._pull_of(record)
        if record.tag and len(pull.tags) < _MOST_TAGS:
            pull.tags[record.tag] = None
        digest = record.digest
        if pull.manifest is None and record.is_manifest:
            pull.manifest = digest
        if record.source == FROM_STORE:
            pull.store += record.sent
        elif record.source == FROM_PEER:
            pull.peers += record.sent
            for peer, count in record.senders.items():
                pull.senders[peer] = pull.senders.get(peer, 0) + count
        if digest is None:
            return
        if is_missed:
            if len(pull.pending) < _MOST_PENDING:
                pull.pending[digest] = None
                self._missing[digest] = pull
        elif (waiting := self._missing.pop(digest, None)) is not None:
            waiting.pending.pop(digest, None)  # another try succeeded

    def growing(self, digest: Digest) -> None:
        """Record that content from upstream is arriving, so that its pull does not end."""
        if (pull := self._missing.get(digest)) is not None:
            pull.last = self._clock()

    def arrived(self, digest: Digest, from_upstream: int) -> None:
        """Record that the whole content is in the store now."""
        if (pull := self._missing.pop(digest, None)) is not None:
            pull.pending.pop(digest, None)
            pull.upstream += from_upstream
            pull.last = self._clock()

    def end(self, busy: Collection[str]) -> list[Pull]:
        """Forget the pulls that have ended, and return those of them that have received or miss something.

        Args:
            busy: The repositories of which requests are in progress.
        """
        now = self._clock()
        ended = [
            each
            for each in self._pulls.values()
            if each.repository not in busy and now - each.last >= (PATIENCE if each.pending else QUIET)
        ]
        for pull in ended:
            self._forget(pull)
        return [each for each in ended if each.received != Received() or each.pending]

    def _pull_of(self, record: RequestRecord) -> Pull:
        now = self._clock()
        pull = self._pulls.get(record.repository)
        if pull is None:
            if len(self._pulls) >= _MOST_PULLS:
                self._forget(next(iter(self._pulls.values())))
            pull = self._pulls[record.repository] = Pull(record.repository, record.started, now)
        pull.last = now
        pull.started = min(pull.started, record.started)
        return pull

    def _forget(self, pull: Pull) -> None:
        del self._pulls[pull.repository]
        for digest in pull.pending:
            if self._missing.get(digest) is pull:
                del self._missing[digest]
