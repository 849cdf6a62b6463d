"""What a repository has according to its registry: the tags, and what refers to a digest, such as signatures."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.parse import urlencode

from peili.mirror.errors import PeerUnavailable
from peili.mirror.oci.documents import digest_in, list_of, read_object, table_of
from peili.mirror.oci.references import OCI_INDEX, Digest, is_tag
from peili.mirror.oci.requests import Endpoint, Requester
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.interfaces import Context
from peili.mirror.plugins.resolver import Listed
from peili.mirror.resolvers.peers import PeersResolver
from peili.mirror.resolvers.questions import STALE, Questions, demand_rights, without_rights
from peili.mirror.support.fingerprints import Fingerprints
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.upstream.answers import Fetched, Question, Refusal, Unreachable

REFERRERS_ROUTE = "/v1/referrers"
"""The route at which a host says which referrers it was told, below the resolver's part of the peer door."""
_MOST_LISTS = 1024
_MEMORY = 4
"""How many of the largest answers are remembered at the same time."""
_ASKED_PEERS = 8
_MAX_DEPTH = 16
"""Levels of a descriptor. The OCI image spec has three."""

_Key: TypeAlias = tuple[Endpoint, str, str, str, bytes]
"""What is asked, and the fingerprint of the requester if only some may know the answer."""


class Listings:
    """The lists of the resolver ``upstream``, each used for `within` seconds.

    A list of a repository that only some may read is only for the requester that the registry sent it to. While the
    registry is down, the last list counts, and for repositories that everybody may read also what peers have.

    Args:
        context: The mirror.
        tasks: Owns the questions that are under way.
        peers: Finds the tags of this host and of peers.
        questions: Waits for the answers.
        within: Seconds for which an answer of the registry is used.
    """

    def __init__(
        self, context: Context, tasks: Tasks, peers: PeersResolver, questions: Questions, within: float
    ) -> None:
        self._context = context
        self._peers = peers
        self._questions = questions
        self._within = within
        self._fingerprints = Fingerprints()
        self._told = _ToldLists(_MEMORY * context.limits.upstream_answer)
        self._asking = SingleFlight[_Key, Fetched | Refusal](tasks)

    async def tags(self, registry: str, repository: str, stored: Collection[str], requester: Requester) -> Listed[str]:
        """Return the tags of a repository. Raises AuthorizationRequired, Unavailable."""
        question = Question(registry, repository, Endpoint.TAGS, "list", requester.authorization, ("application/json",))
        answer, warning = await self._ask(question, requester)
        if isinstance(answer, Fetched):
            return Listed(_items(answer, "tags", _tag), warning)
        if isinstance(answer, Unreachable) and answer.was_asked and not self._context.covers(registry, repository):
            return Listed(tuple(await self._peers.tags(registry, repository, stored)), STALE)
        return Listed()

    async def referrers(
        self, registry: str, repository: str, digest: Digest, requester: Requester
    ) -> Listed[Mapping[str, Any]] | None:
        """Return what refers to `digest`; None if nobody knows. Raises AuthorizationRequired, Unavailable."""
        question = Question(
            registry, repository, Endpoint.REFERRERS, digest, requester.authorization, (OCI_INDEX, "application/json")
        )
        answer, warning = await self._ask(question, requester)
        if isinstance(answer, Unreachable) and answer.was_asked and not self._context.covers(registry, repository):
            answer, warning = await self._ask_peers(registry, repository, digest) or answer, STALE
        return Listed(_items(answer, "manifests", _descriptor), warning) if isinstance(answer, Fetched) else None

    def told_referrers(self, registry: str, repository: str, digest: Digest) -> Sequence[Mapping[str, Any]] | None:
        """Return what this host was told about referrers that everybody may know; None if it was not told."""
        told = self._told.get((Endpoint.REFERRERS, registry, repository, digest, b""))
        return None if told is None else _items(told, "manifests", _descriptor)

    async def _ask(self, question: Question, requester: Requester) -> tuple[Fetched | Refusal, str | None]:
        """Return the answer of the registry, and a warning if it is an old one."""
        fingerprint = self._fingerprints.of(requester.authorization)
        is_covered = self._context.covers(question.registry, question.repository)
        what = (question.endpoint, question.registry, question.repository, question.reference)
        key = (*what, fingerprint if is_covered else b"")
        if (told := self._told.get(key, within=self._within)) is not None:
            return told, None
        asking = self._asking.call((*what, fingerprint), lambda: self._fetch(question))
        answer = await self._questions.settle(question.registry, asking)
        demand_rights(answer, requester)
        if isinstance(answer, Fetched):
            self._told.note(key, answer)
        if isinstance(answer, Unreachable):
            text = "%s: the registry does not list it: %s"
            self._context.log.warning(text, question, answer.why)
            if answer.was_asked and (told := self._told.get(key)) is not None:
                return told, STALE
        return answer, None

    async def _fetch(self, question: Question) -> Fetched | Refusal:
        upstream = self._context.upstream
        if question.authorization is None:
            refused = await without_rights(upstream, question.registry, question.repository, self._within)
            if refused is not None:
                return refused
        return await upstream.fetch(question)

    async def _ask_peers(self, registry: str, repository: str, digest: Digest) -> Fetched | None:
        """Return what a few peers were told, together; None if none of them was told anything."""
        peers = list(self._context.router.peers())
        asked = random.sample(peers, min(len(peers), _ASKED_PEERS))
        query = urlencode({"registry": registry, "repository": repository, "digest": digest})
        path = f"/_resolver{REFERRERS_ROUTE}?{query}"
        pages = [each for each in await asyncio.gather(*(self._ask_peer(peer, path) for peer in asked)) if each]
        return Fetched(tuple(pages)) if pages else None

    async def _ask_peer(self, peer: Peer, path: str) -> bytes | None:
        limits = self._context.limits
        try:
            head, body = await self._context.client.request(
                "GET", peer, path, None, timeout=limits.lookup_timeout, max_response=limits.upstream_answer
            )
        except PeerUnavailable as error:
            self._context.log.debug("peer %s says nothing about referrers: %s", peer.id, error)
            return None
        return body if head.status == 200 else None


class _ToldLists:
    """The last answers of registries. Of many or large ones, those are forgotten that were not used for longest."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._told: OrderedDict[_Key, tuple[Fetched, float]] = OrderedDict()

    def get(self, key: _Key, *, within: float | None = None) -> Fetched | None:
        """Return an answer; None if there is none `within` this many seconds."""
        if (told := self._told.get(key)) is None:
            return None
        self._told.move_to_end(key)
        answer, at = told
        return answer if within is None or time.monotonic() - at < within else None

    def note(self, key: _Key, answer: Fetched) -> None:
        """Remember an answer."""
        if (old := self._told.pop(key, None)) is not None:
            self._bytes -= _size(old[0])
        self._told[key] = (answer, time.monotonic())
        self._bytes += _size(answer)
        while self._bytes > self._most_bytes or len(self._told) > _MOST_LISTS:
            _, (forgotten, _) = self._told.popitem(last=False)
            self._bytes -= _size(forgotten)


def _size(answer: Fetched) -> int:
    return sum(map(len, answer.pages))


def _items(answer: Fetched, name: str, parse: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return the items of all pages of an answer, each once. What is malformed is left out."""
    found: dict[str, Any] = {}
    for page in answer.pages:
        try:
            items = list_of(read_object(page).get(name))
        except ValueError:
            continue
        for item in items:
            if (parsed := parse(item)) is not None:
                found.setdefault(json.dumps(parsed, sort_keys=True), parsed)
    return tuple(found.values())


def _tag(item: Any) -> str | None:
    return item if isinstance(item, str) and is_tag(item) else None


def _descriptor(item: Any) -> Mapping[str, Any] | None:
    """Return a descriptor with a digest as it is."""
    try:
        descriptor = table_of(item)
        digest_in(descriptor)
    except ValueError:
        return None
    return None if _is_deep(descriptor, _MAX_DEPTH) else descriptor


def _is_deep(value: object, most: int) -> bool:
    """Return whether a value has more than `most` levels. Python can't write any number of them."""
    if isinstance(value, dict):
        inner: Iterable[object] = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    else:
        return False
    return most == 0 or any(_is_deep(each, most - 1) for each in inner)
