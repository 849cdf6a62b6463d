"""Remembers what this host received lately, so that hosts can compare it if the digest of the content is wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.received import MAX_PREFIXES, ReceivedBytes

_MAX_DIGESTS = 256
_MAX_ATTEMPTS = 2
"""After the wrong bytes, the right ones may come in another attempt. Other hosts ask for the wrong ones then."""


class ReceivedRecords:
    """The last attempts to receive content, by digest. Used on one event loop. The oldest ones are forgotten."""

    def __init__(self) -> None:
        self._attempts: OrderedDict[Digest, list[ReceivedBytes]] = OrderedDict()

    def add(self, digest: Digest, attempt: ReceivedBytes) -> None:
        """Remember `attempt`, which may still grow."""
        attempts = self._attempts.setdefault(digest, [])
        attempts.append(attempt)
        del attempts[:-_MAX_ATTEMPTS]
        self._attempts.move_to_end(digest)
        while len(self._attempts) > 1 and (len(self._attempts) > _MAX_DIGESTS or self._count() > MAX_PREFIXES):
            self._attempts.popitem(last=False)

    def get(self, digest: Digest) -> Sequence[ReceivedBytes]:
        """Return the attempts to receive `digest`, the latest last."""
        return tuple(self._attempts.get(digest, ()))

    def _count(self) -> int:
        return sum(len(attempt.prefixes) for attempts in self._attempts.values() for attempt in attempts)
