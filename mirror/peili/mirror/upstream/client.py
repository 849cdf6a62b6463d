"""`UpstreamClient` asks registries small questions: may this be read, and what does a tag mean there?"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from peili.mirror.limits import KIB, Limits
from peili.mirror.oci.references import MAX_MANIFEST, Descriptor, Digest
from peili.mirror.oci.requests import Endpoint
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.answers import (
    Absent,
    Answer,
    Challenged,
    Denied,
    Fetched,
    Question,
    Readable,
    Refusal,
    Unreachable,
    descriptor_of,
    media_type_of,
    next_page,
    refusal,
)
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.exchanges import Exchange, ExchangeFailed, NotDialled, RegistryReply, TooLarge
from peili.mirror.upstream.registries import KnownRegistries, KnownRegistry
from peili.mirror.upstream.roots import ApiRoot, RootFinder, default_roots

if TYPE_CHECKING:
    from peili.mirror.upstream.transport import RegistryTransport

_T = TypeVar("_T")

_THREADS = 2
_MOST_BASE = 64 * KIB
_MOST_PAGES = 64

Counter: TypeAlias = Callable[[str, str], None]
"""Counts a request that was sent to a registry: its endpoint, and the kind of the answer."""


class UpstreamClient:
    """Asks registries. One per mirror, used on its loop: ``async with UpstreamClient(limits) as client``.

    Every method takes at most ``limits.upstream_timeout`` seconds, may be called concurrently, may be cancelled, and
    does not raise for errors of the network or of a registry. While the client is not entered, every registry counts as
    unreachable. Authorization headers are neither kept nor logged.

    Args:
        limits: ``upstream_timeout``, ``upstream_requests``, ``upstream_answer`` and ``connect_timeout``.
        roots: Finds the API of a registry. It runs in a thread. Its errors make the registry unreachable.
        log: Receives what goes wrong in `roots`.
        count: Counts each request.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        roots: RootFinder = default_roots,
        log: logging.Logger | None = None,
        count: Counter = lambda endpoint, answer: None,
    ) -> None:
        self._limits = limits or Limits()
        self._count = count
        self._threads = DaemonThreads(_THREADS, "peili upstream")
        self._transport: RegistryTransport | None = None  # from the first question on
        self._registries = KnownRegistries(roots, self._threads, log or logging.getLogger("peili.upstream"))
        self._slots: asyncio.Semaphore | None = None  # while the client is entered

    async def __aenter__(self) -> Self:
        self._registries.clear()
        self._slots = asyncio.Semaphore(self._limits.upstream_requests)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._slots = None
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def ask(self, question: Question) -> Answer:
        """Ask for a manifest or a blob by HEAD, with the rights of the question's Authorization header.

        If the registry has several roots, they are asked one after the other until one has it, as a runtime does. The
        Authorization header is sent only to the root that challenged.

        Args:
            question: The endpoint is `Endpoint.MANIFEST` or `Endpoint.BLOB`.
        """
        return await self._bounded(self._try_roots(question, self._ask_root))

    async def challenge(self, registry: str) -> Challenge | Unreachable | None:
        """Return how a registry challenges requests without rights; None if it does not.

        It is asked by ``GET /v2/`` at most once in ten minutes, also if many tasks need it. If it does not answer then,
        what it said last still counts.
        """
        known = self._registries.get(registry)
        if known.is_fresh(math.inf):
            return known.challenge
        asked = await self._bounded(self._learn_challenge(registry, known, math.inf))
        return asked if not known.has_answered else known.challenge

    async def probe(self, registry: str, within: float) -> Challenge | Unreachable | None:
        """Return how a registry challenges, as `challenge` does, if it also has answered lately.

        Args:
            registry: The registry.
            within: If it has not answered anything for this many seconds, it is asked.

        Returns:
            The challenge; None if it does not challenge; `Unreachable` if it does not answer now.
        """
        known = self._registries.get(registry)
        if known.is_fresh(within):
            return known.challenge
        return await self._bounded(self._learn_challenge(registry, known, within))

    async def fetch(self, question: Question) -> Fetched | Refusal:
        """Read a document: the tags of a repository, or the referrers of a digest. All its pages are read.

        Args:
            question: The endpoint is `Endpoint.TAGS` or `Endpoint.REFERRERS`.

        Returns:
            The pages; or `Denied` if they have more than ``limits.upstream_answer`` bytes together, or if only some of
            them arrive in time.
        """
        pages: list[bytes] = []
        answer = await self._bounded(self._try_roots(question, partial(self._fetch_pages, pages)))
        return Denied("only a part of it arrived") if pages and isinstance(answer, Unreachable) else answer

    async def _bounded(self, work: Coroutine[Any, Any, _T]) -> _T | Unreachable:
        """Return what `work` returns in time, as soon as there is a slot."""
        try:
            if self._slots is None:
                return Unreachable("this mirror is not running")
            async with Deadline(self._limits.upstream_timeout), self._slots:
                return await work
        except TimeoutError:
            return Unreachable(f"no answer in {self._limits.upstream_timeout:g} s")
        finally:
            work.close()  # it was not started if there was no slot in time

    async def _try_roots(self, question: Question, ask: Callable[[ApiRoot, Question], Awaitable[_T]]) -> _T | Refusal:
        """Return the first good answer of the registry's roots. Without one, a challenge goes first, then the last.

        The last root is the registry itself. The others are its mirrors.
        """
        known = self._registries.get(question.registry)
        if (pause := known.pause()) > 0:
            return Unreachable("it wants no request yet", pause)
        roots: Sequence[ApiRoot] = await self._registries.roots(question.registry)
        if question.authorization is not None and len(roots) > 1:
            await self._learn_challenge(question.registry, known, math.inf)
            roots = (known.challenger or roots[-1],)
        challenged: Challenged | None = None
        answer: _T | Refusal = Unreachable("its API was not found")
        for number, root in enumerate(roots, 1):
            answer = await self._in_its_share(ask(root, question), len(roots))
            self._count(question.endpoint.value, type(answer).__name__.lower())
            if not isinstance(answer, Unreachable):
                known.note_answer()
            match answer:
                case Challenged() if challenged is None:
                    challenged, known.challenger = answer, root
                case Unreachable(_, retry_after) if retry_after is not None and number == len(roots):
                    known.pause_for(retry_after)
                case Challenged() | Denied() | Absent() | Unreachable():
                    pass
                case _:
                    return answer
        return challenged or answer

    async def _in_its_share(self, work: Awaitable[_T | Refusal], roots: int) -> _T | Refusal:
        """Return the answer of one of several roots. None of them uses the time of the others."""
        seconds = self._limits.upstream_timeout / roots
        try:
            async with Deadline(seconds):
                return await work
        except TimeoutError:
            return Unreachable(f"no answer in {seconds:g} s")

    async def _learn_challenge(
        self, registry: str, known: KnownRegistry, within: float
    ) -> Challenge | Unreachable | None:
        async with known.asking:
            if known.is_fresh(within):
                return known.challenge
            answer = await self._try_roots(Question(registry, "", Endpoint.BASE, ""), self._ask_base)
            match answer:
                case Unreachable():
                    return answer
                case Challenged(challenge):
                    known.challenge = challenge
                case _:
                    known.challenge = known.challenger = None
            known.keep_challenge()
            return known.challenge

    async def _ask_base(self, root: ApiRoot, question: Question) -> Fetched | Refusal:
        exchange = Exchange("GET", f"{root.url}/", root.headers, None, _MOST_BASE)
        reply = await self._send(root, exchange)
        return reply if isinstance(reply, (Denied, Unreachable)) else refusal(reply) or Fetched(())

    async def _ask_root(self, root: ApiRoot, question: Question) -> Answer:
        is_blob = question.endpoint is Endpoint.BLOB
        head = self._exchange("HEAD", root, question, stops_at_other_host=is_blob)
        reply = await self._send(root, head)
        if isinstance(reply, (Denied, Unreachable)):
            return reply
        if reply.is_redirect:
            return Readable(None)
        if (refused := refusal(reply)) is not None:
            return refused
        try:
            descriptor = descriptor_of(reply, question)
        except ValueError as error:
            return Denied(str(error))
        return Readable(descriptor) if is_blob or descriptor is not None else await self._read_manifest(root, question)

    async def _read_manifest(self, root: ApiRoot, question: Question) -> Answer:
        """Find out by GET what the registry does not say to HEAD."""
        reply = await self._send(root, self._exchange("GET", root, question, most=MAX_MANIFEST))
        if isinstance(reply, (Denied, Unreachable)):
            return reply
        if (refused := refusal(reply)) is not None:
            return refused
        try:
            digest = Digest.of(reply.body)
            said = replace(reply, headers={**reply.headers, "docker-content-digest": digest})
            return Readable(Descriptor(media_type_of(said), digest, len(reply.body)))
        except ValueError as error:
            return Denied(str(error))

    async def _fetch_pages(self, pages: list[bytes], root: ApiRoot, question: Question) -> Fetched | Refusal:
        """Read all pages at one root, and note in `pages` those that have arrived."""
        exchange = self._exchange("GET", root, question, most=self._limits.upstream_answer)
        pages.clear()
        while len(pages) < _MOST_PAGES:
            reply = await self._send(root, exchange)
            if isinstance(reply, (Denied, Unreachable)):
                return reply
            if (refused := refusal(reply)) is not None:
                return refused
            pages.append(reply.body)
            if (following := next_page(reply, exchange.url)) is None:
                return Fetched(tuple(pages))
            exchange = replace(exchange, url=following, most=exchange.most - len(reply.body))
        return Denied(f"its answer has more than {_MOST_PAGES} pages")

    def _exchange(
        self, method: str, root: ApiRoot, question: Question, *, most: int = 0, stops_at_other_host: bool = False
    ) -> Exchange:
        headers = {**root.headers, "Accept": ", ".join(question.accept)}
        url = f"{root.url}{question.path}"
        return Exchange(method, url, headers, question.authorization, most, stops_at_other_host)

    async def _send(self, root: ApiRoot, exchange: Exchange) -> RegistryReply | Denied | Unreachable:
        if self._transport is None:
            transport = await self._threads.run(self._new_transport)
            self._transport = self._transport or transport  # another task may have been faster
        try:
            return await self._transport.send(root, exchange)
        except (TooLarge, NotDialled) as error:
            return Denied(str(error))
        except ExchangeFailed as error:
            return Unreachable(str(error))

    def _new_transport(self) -> RegistryTransport:
        """Load httpx, which takes a while and some memory. A mirror that asks no registry does without it."""
        from peili.mirror.upstream.transport import RegistryTransport  # noqa: PLC0415 - as above

        return RegistryTransport(self._limits, self._threads)
