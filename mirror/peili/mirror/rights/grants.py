"""Remembers for a while that a registry let somebody read something. No I/O."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from peili.mirror.oci.references import Digest

_MOST_IN_SCOPE = 4096


@dataclass(frozen=True, slots=True)
class Scope:
    """What one requester may read in one repository.

    Attributes:
        key: The hash of the requester; empty for everybody.
        repository: Registry and repository.
    """

    key: bytes = field(repr=False)
    repository: str


@dataclass(frozen=True, slots=True)
class _Grant:
    """Until when something may be read, by the clock, and whether that holds for what it refers to."""

    until: float
    is_manifest: bool = False


class Grants:
    """Answers of registries that allow something. Used on one event loop.

    Args:
        ttl: Seconds for which an answer is remembered.
        most: The largest number of answers and scopes together. What was used least recently is forgotten.
        clock: Seconds that never go back.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        ttl: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ttl = ttl
        self._most = most
        self._clock = clock
        self._wall = wall
        self._scopes: OrderedDict[Scope, OrderedDict[Digest, _Grant]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Return how many answers and scopes are remembered, expired ones included."""
        return self._count + len(self._scopes)

    def add(self, scope: Scope, digest: Digest, expires: float | None = None, *, is_manifest: bool = False) -> bool:
        """Remember that `digest` may be read.

        Args:
            scope: By whom, and where.
            digest: The manifest or the blob.
            expires: When the token expires, in seconds since 1970. The answer is not used after that.
            is_manifest: Whether the registry has it as a manifest. Then the answer holds for what it refers to.

        Returns:
            Whether something else was forgotten for it.
        """
        remaining = self._ttl if expires is None else min(self._ttl, expires - self._wall())
        return remaining > 0 and self._add(scope, digest, _Grant(self._clock() + remaining, is_manifest))

    def has(self, scope: Scope, digest: Digest) -> bool:
        """Return whether it is remembered that `digest` may be read."""
        grant = self._of(scope).get(digest)
        if grant is None or grant.until <= self._clock():
            return False
        self._scopes.move_to_end(scope)
        return True

    def manifests(self, scope: Scope) -> Collection[Digest]:
        """Return the manifests that may be read, the latest grant first. Forgets what has expired."""
        grants, now = self._of(scope), self._clock()
        for digest in [digest for digest, grant in grants.items() if grant.until <= now]:
            del grants[digest]
            self._count -= 1
        return [digest for digest, grant in reversed(grants.items()) if grant.is_manifest]

    def inherit(self, scope: Scope, digest: Digest, parent: Digest) -> None:
        """Remember that `digest` may be read for as long as `parent`, which refers to it."""
        grant = self._of(scope).get(parent)
        if grant is not None:
            self._add(scope, digest, _Grant(grant.until))

    def _of(self, scope: Scope) -> OrderedDict[Digest, _Grant]:
        return self._scopes.get(scope) or OrderedDict()

    def _add(self, scope: Scope, digest: Digest, grant: _Grant) -> bool:
        grants = self._scopes.setdefault(scope, OrderedDict())
        self._scopes.move_to_end(scope)
        self._count += digest not in grants
        grants[digest] = grant
        grants.move_to_end(digest)
        is_full = False
        if is_full := len(grants) > min(max(1, self._most - 1), _MOST_IN_SCOPE):
            grants.popitem(last=False)
            self._count -= 1
        while len(self._scopes) > 1 and len(self) > self._most:
            self._count -= len(self._scopes.popitem(last=False)[1])
            is_full = True
        return is_full

    def has_been_granted(self, scope: Scope) -> bool:
        """Return whether the registry has let this requester read something, even if that has expired."""
        return scope in self._scopes
