"""Asks one root of a registry's API. Most questions take one request, and some take a second one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from peili.mirror.limits import KIB, Limits
from peili.mirror.oci.references import MAX_MANIFEST
from peili.mirror.oci.requests import Endpoint
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.answers import (
    Answer,
    Challenged,
    Denied,
    Fetched,
    Question,
    Refusal,
    Unreachable,
    blob_of,
    manifest_of,
    next_page,
    not_asked,
    read_manifest_of,
    refusal,
)
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.exchanges import (
    CannotAsk,
    Exchange,
    ExchangeFailed,
    NotDialled,
    RegistryReply,
    UnusableReply,
)

if TYPE_CHECKING:
    from peili.mirror.upstream.transport import RegistryTransport

_T = TypeVar("_T")

_MOST_BASE = 64 * KIB
_MOST_PAGES = 64
_OK = 200


class RootClient:
    """Sends questions to roots. Used on one event loop, concurrently. The caller bounds the time.

    No method raises for errors of the network or of a registry.

    Args:
        limits: ``upstream_answer``, and those of the transport.
        threads: Loads httpx, and reads certificates.
        log: Receives a line if a root that is configured can't be asked, for example because of its certificate.
    """

    def __init__(self, limits: Limits, threads: DaemonThreads, log: logging.Logger) -> None:
        self._limits = limits
        self._threads = threads
        self._log = log
        self._logged: dict[str, str] = {}  # why roots can't be asked, by their URL
        self._is_open = False
        self._transport: RegistryTransport | None = None  # from the first question on

    def open(self) -> None:
        """Allow questions, until `aclose`."""
        self._is_open = True

    async def aclose(self) -> None:
        """Close all connections. Nothing is asked from now on, until `open`."""
        self._is_open = False
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def ask_base(self, root: ApiRoot, registry: str) -> Fetched | Refusal:
        """Ask for the root of the API of `registry`, without the rights of anybody."""
        exchange = Exchange("GET", _naming(registry, root, f"{root.url}/"), {}, None, _MOST_BASE)
        reply = await self._send(root, exchange)
        return reply if isinstance(reply, (Denied, Unreachable)) else refusal(reply) or Fetched(())

    async def ask_token_server(self, challenge: Challenge, root: ApiRoot) -> Fetched | Refusal:
        """Ask the token server of a challenge, without the rights of anybody. What it answers is not read."""
        reply = await self._send(root, Exchange("GET", challenge.token_url, {}, None, 0))
        return reply if isinstance(reply, (Denied, Unreachable)) else refusal(reply) or Fetched(())

    async def ask(self, root: ApiRoot, question: Question) -> Answer:
        """Ask for a manifest or a blob."""
        is_blob = question.endpoint is Endpoint.BLOB
        reply = await self._send(root, self._exchange("HEAD", root, question, stops_at_other_host=is_blob))
        if isinstance(reply, RegistryReply) and reply.location is not None:
            return await self._find_elsewhere(root, question, reply.location)
        if is_blob:
            return _judge(reply, question, blob_of)
        answer = _judge(reply, question, manifest_of)
        return answer if answer is not None else await self._read_manifest(root, question)

    async def _find_elsewhere(self, root: ApiRoot, question: Question, url: str) -> Answer:
        """Find out whether a blob is at another host, to which the registry sends its requesters.

        The other host may be storage that has it, or a page where people log in. An address is often signed for one
        method. So if HEAD is refused there, the registry is asked again, by GET for the first byte.
        """
        reply = await self._send(root, Exchange("HEAD", url, {}, None, 0))
        if not (isinstance(reply, RegistryReply) and reply.status == _OK):
            get = self._exchange("GET", root, question)
            reply = await self._send(root, replace(get, headers={**get.headers, "Range": "bytes=0-0"}))
        answer = _judge(reply, question, blob_of)
        return Denied("its storage demands rights") if isinstance(answer, Challenged) else answer

    async def _read_manifest(self, root: ApiRoot, question: Question) -> Answer:
        """Find out by GET what the registry does not say to HEAD."""
        reply = await self._send(root, self._exchange("GET", root, question, most=MAX_MANIFEST))
        return _judge(reply, question, read_manifest_of)

    async def fetch_pages(self, pages: list[bytes], root: ApiRoot, question: Question) -> Fetched | Refusal:
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
            try:
                following = next_page(reply, exchange.url)
            except ValueError as error:
                return Denied(f"it names a next page that can't be asked for: {error}")
            if following is None:
                return Fetched(tuple(pages))
            following = _naming(question.registry, root, following)
            exchange = replace(exchange, url=following, most=exchange.most - len(reply.body))
        return Denied(f"its answer has more than {_MOST_PAGES} pages")

    def _exchange(
        self, method: str, root: ApiRoot, question: Question, *, most: int = 0, stops_at_other_host: bool = False
    ) -> Exchange:
        headers = {"Accept": ", ".join(question.accept)}
        url = _naming(question.registry, root, f"{root.url}{question.path}")
        return Exchange(method, url, headers, question.authorization, most, stops_at_other_host)

    async def _send(self, root: ApiRoot, exchange: Exchange) -> RegistryReply | Denied | Unreachable:
        transport = await self._opened_transport()
        if transport is None:
            return not_asked("this mirror is not running")
        try:
            reply = await transport.send(root, exchange)
        except CannotAsk as error:
            self._complain(root, str(error))
            return not_asked(str(error))
        except (UnusableReply, NotDialled) as error:
            return Denied(str(error))
        except ExchangeFailed as error:
            return Unreachable(str(error))
        self._logged.pop(root.url, None)
        return reply

    async def _opened_transport(self) -> RegistryTransport | None:
        """Return the transport; None if this is closed, also if that happens meanwhile."""
        if self._is_open and self._transport is None:
            transport = await self._threads.run(self._new_transport)
            if self._is_open:
                self._transport = self._transport or transport  # another task may have been faster
        return self._transport

    def _complain(self, root: ApiRoot, why: str) -> None:
        """Log once why a root can't be asked. Anybody can name registries that nobody has configured: not for those."""
        if not root.is_assumed and self._logged.get(root.url) != why:
            self._logged[root.url] = why
            self._log.warning("%s can't be asked, so the runtime has to ask it: %s", root.url, why)

    def _new_transport(self) -> RegistryTransport:
        """Load httpx, which takes a while and some memory. A mirror that asks no registry does without it."""
        from peili.mirror.upstream.transport import RegistryTransport  # noqa: PLC0415 - as above

        return RegistryTransport(self._limits, self._threads)


def _naming(registry: str, root: ApiRoot, url: str) -> str:
    """Return `url`, which tells a mirror of several registries which one is meant, as containerd tells it."""
    parts = urlsplit(url)
    if not root.is_mirror or "ns" in parse_qs(parts.query):
        return url
    query = f"{parts.query}&ns={quote(registry)}" if parts.query else f"ns={quote(registry)}"
    return parts._replace(query=query).geturl()


def _judge(
    reply: RegistryReply | Denied | Unreachable, question: Question, judge: Callable[[RegistryReply, Question], _T]
) -> _T | Refusal:
    """Return what `judge` makes of a good reply, or why it is none."""
    if isinstance(reply, (Denied, Unreachable)):
        return reply
    if (refused := refusal(reply)) is not None:
        return refused
    try:
        return judge(reply, question)
    except ValueError as error:
        return Denied(str(error))
