"""Hosts that ask the registry once for all of them what a tag means: each tag has a home, which knows who asks.

If the home does not answer, a host asks the registry itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from peili.mirror.errors import PeerUnavailable
from peili.mirror.oci.references import Reference
from peili.mirror.peer_api.peers import Peer
from peili.mirror.peer_api.tags import KnownTag, TagAnswer, shared_path, told_path
from peili.mirror.plugins.interfaces import Context
from peili.mirror.resolvers.told_tags import ToldTags

_MAX_ANSWER = 16_384


@dataclass(slots=True)
class _Claim:
    """A host asks the registry until this time, or until it reports."""

    until: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class TagClaims:
    """This host as a home of tags: it lets one host ask the registry, and the others wait for what that one reports.

    Args:
        told: What registries said.
        timeout: Seconds after which a host that does not report is no longer waited for.
        wait: Seconds for which a host waits at most.
        most: How many tags are asked for at the same time. For further ones, each host asks.
    """

    def __init__(self, told: ToldTags, *, timeout: float, wait: float, most: int) -> None:
        self._told = told
        self._timeout = timeout
        self._wait = wait
        self._most = most
        self._claims: dict[Reference, _Claim] = {}

    async def acquire(self, reference: Reference, within: float) -> KnownTag | None:
        """Return what the registry said `within` this many seconds; None if the caller shall ask it, and `report`."""
        end = time.monotonic() + self._wait
        while (told := self._told.get(reference, within=within)) is None:
            now = time.monotonic()
            claim = self._claims.get(reference)
            if claim is None or claim.until <= now:
                self._claim(reference, now)
                return None
            if end <= now:
                return None
            try:
                async with asyncio.timeout(min(claim.until, end) - now):
                    await claim.ended.wait()
            except TimeoutError:
                continue
        return told

    def report(self, reference: Reference, told: KnownTag | None) -> None:
        """Record what the registry said to the host that asked; None if it said nothing that can be used."""
        if told is not None:
            self._told.note(reference, told.descriptor, told.age or 0.0)
        if (claim := self._claims.pop(reference, None)) is not None:
            claim.ended.set()

    def _claim(self, reference: Reference, now: float) -> None:
        if len(self._claims) >= self._most:
            self._claims = {each: claim for each, claim in self._claims.items() if claim.until > now}
        if len(self._claims) < self._most:
            self._claims[reference] = _Claim(now + self._timeout)


class SharedTags:
    """This host among the others: it asks the home of a tag first, and reports to it.

    Args:
        context: The mirror.
        claims: For the tags whose home is this host.
        within: Seconds for which an answer of the registry is used.
    """

    def __init__(self, context: Context, claims: TagClaims, within: float) -> None:
        self._context = context
        self._claims = claims
        self._within = within

    async def acquire(self, reference: Reference) -> KnownTag | None:
        """Return what the registry said to any host; None if this host shall ask it, and then `report`."""
        home = self._home(reference)
        if home is None:
            return await self._claims.acquire(reference, self._within)
        timeout = self._context.limits.upstream_timeout
        path = shared_path(reference, self._within)
        return await self._send(home, "GET", path, timeout, lambda body: TagAnswer.parse(body).told)

    async def report(self, reference: Reference, told: KnownTag | None) -> None:
        """Say what the registry said; None if it said nothing that can be used."""
        home = self._home(reference)
        if home is None:
            self._claims.report(reference, told)
            return
        timeout = self._context.limits.lookup_timeout
        await self._send(home, "POST", told_path(reference, told), timeout, lambda _: None)

    def _home(self, reference: Reference) -> Peer | None:
        return self._context.router.home(reference)

    async def _send(
        self, home: Peer, method: str, path: str, timeout: float, parse: Callable[[bytes], KnownTag | None]
    ) -> KnownTag | None:
        """Return what the home answers; None if it has no answer."""
        sent = b"" if method == "POST" else None
        try:
            head, body = await self._context.client.request(
                method, home, path, sent, timeout=timeout, max_response=_MAX_ANSWER
            )
            return parse(body) if head.status == 200 else None
        except (PeerUnavailable, ValueError) as error:
            self._context.log.debug("the home %s says nothing: %s", home.id, error)
            return None
