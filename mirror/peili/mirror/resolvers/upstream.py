"""A resolver that asks the registry what a tag means, and peers only while the registry does not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from typing_extensions import override

from peili.mirror.errors import AuthorizationRequired, ConfigError
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.requests import Endpoint, Requester
from peili.mirror.peer_api.messages import JSON_HEADERS, encode_message
from peili.mirror.peer_api.tags import SHARED_ROUTE, TAG_ROUTE, TOLD_ROUTE, TagAnswer, parse_told, parse_within
from peili.mirror.plugins.interfaces import Context, running_already
from peili.mirror.plugins.resolver import Listed, Resolution, Resolver
from peili.mirror.resolvers.listings import REFERRERS_ROUTE, Listings
from peili.mirror.resolvers.outage import guess, own_answer
from peili.mirror.resolvers.peers import PeersResolver
from peili.mirror.resolvers.questions import LATELY, STALE, Questions, demand_rights, without_rights
from peili.mirror.resolvers.shared_tags import SharedTags, TagClaims
from peili.mirror.resolvers.told_tags import ToldTags
from peili.mirror.support.fingerprints import Fingerprints
from peili.mirror.support.options import Options, compile_patterns
from peili.mirror.support.single_flight import SingleFlight
from peili.mirror.support.tasks import Tasks
from peili.mirror.tls.identities import has_proven_itself
from peili.mirror.upstream.answers import Absent, Answer, Question, Readable, Unreachable

_REFERRERS = ("registry", "repository", "digest")
"""The parameters of a question about referrers."""
TAG_TTL = 30.0
"""Seconds for which an answer of the registry is used, by default."""


class UpstreamResolver(Resolver):
    """Asks the registry by HEAD, with the rights of the runtime. The content can then come from peers.

    If the registry demands rights, the runtime gets its challenge, and comes back with a token. While the registry is
    down, slow or rate-limited, a tag means what this host, else a peer, was told last; else what the newest image of
    that name on this host or on a peer is. Such an answer has a Warning header and a line in the log. The registry is
    asked again for the next request.

    Args:
        tag_ttl: Seconds for which an answer of the registry is used.
        immutable: Regular expressions. A tag that matches one as a whole always means the same, so the registry is
            not asked if an image of that name is here or at a peer.
        tag_share: Ask the registry once for all hosts, through the home of each tag in the directory. Each peer can
            then say what a tag means. Repositories that only some may read are not shared.

    Raises:
        ConfigError: An option is wrong.
    """

    _running: _Running | None = None

    def __init__(self, *, tag_ttl: float = TAG_TTL, immutable: Iterable[str] = (), tag_share: bool = False) -> None:
        if not tag_ttl > 0:
            raise ConfigError("tag_ttl", f"a number of seconds above zero, not {tag_ttl!r}")
        self._tag_ttl = tag_ttl
        self._tag_share = tag_share
        self._immutable = compile_patterns("immutable", immutable)

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        options = Options(config, "tag_ttl", "immutable", "tag_share")
        return cls(
            tag_ttl=options.number("tag_ttl", TAG_TTL, minimum=0.001, expected="a number of seconds above zero"),
            immutable=options.texts("immutable", (), empty=True, expected="a list of regular expressions"),
            tag_share=options.boolean("tag_share", False),
        )

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._running is not None:
            raise running_already(self)
        peers = PeersResolver()
        async with Tasks(context.log) as tasks, peers.run(context):
            self._running = _Running(context, tasks, peers, self._tag_ttl, shares=self._tag_share)
            try:
                yield
            finally:
                self._running = None

    @override
    def routes(self) -> Sequence[BaseRoute]:
        return (
            Route(REFERRERS_ROUTE, self._answer_referrers, methods=["GET"]),
            Route(TAG_ROUTE, self._for_peer(_answer_tag), methods=["GET"]),
            Route(SHARED_ROUTE, self._for_peer(_answer_shared), methods=["GET"]),
            Route(TOLD_ROUTE, self._for_peer(_take_told), methods=["POST"]),
        )

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        try:
            resolution = await self.resolve_for(reference, Requester())
        except AuthorizationRequired:
            return None
        return None if resolution is None else resolution.descriptor

    @override
    async def resolve_for(self, reference: Reference, requester: Requester) -> Resolution | None:
        if (running := self._running) is None:
            return None
        if any(each.fullmatch(reference.tag) for each in self._immutable):
            descriptor = await running.peers.resolve(reference)
            if descriptor is not None:
                return Resolution(descriptor)
        if (told := running.told.get(reference, within=self._tag_ttl)) is not None:
            return Resolution(told.descriptor)
        return await running.resolve(reference, requester)

    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        try:
            return (await self.tags_for(registry, repository, stored, Requester())).items
        except AuthorizationRequired:
            return ()

    @override
    async def tags_for(
        self, registry: str, repository: str, stored: Collection[str], requester: Requester
    ) -> Listed[str]:
        if (running := self._running) is None:
            return Listed()
        return await running.listings.tags(registry, repository, stored, requester)

    @override
    async def referrers_for(
        self, registry: str, repository: str, digest: Digest, requester: Requester
    ) -> Listed[Mapping[str, Any]] | None:
        if (running := self._running) is None:
            return None
        return await running.listings.referrers(registry, repository, digest, requester)

    async def _answer_referrers(self, request: Request) -> Response:
        """Say to another host what the registry said about referrers that everybody may know."""
        if (running := self._running) is None:
            return Response(status_code=503)
        registry, repository, digest = (request.query_params.get(each, "") for each in _REFERRERS)
        try:
            told = running.listings.told_referrers(registry, repository, Digest(digest))
        except ValueError:
            return Response(status_code=400)
        is_open = not running.context.covers(registry, repository)
        if told is None or not is_open or not running.context.selection.allows(registry, repository):
            return Response(status_code=404)
        return Response(encode_message({"manifests": told}), headers=JSON_HEADERS)

    def _for_peer(
        self, answer: Callable[[_Running, Reference, Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint for requests of other hosts about one tag. `answer` may raise ValueError."""

        async def endpoint(request: Request) -> Response:
            if (running := self._running) is None:
                return Response(status_code=503)
            try:
                reference = Reference.parse(request.query_params.get("reference", ""))
                if not _may_know(running.context, reference, request):
                    return Response(status_code=404)
                return await answer(running, reference, request)
            except ValueError:
                return Response(status_code=400)

        return endpoint


def _may_know(context: Context, reference: Reference, request: Request) -> bool:
    """Return whether a host may know what a tag means. If only some may read it, it must have proven who it is."""
    registry, repository = reference.registry, reference.repository
    is_open = not context.covers(registry, repository) or has_proven_itself(request)
    return is_open and context.selection.allows(registry, repository, reference.tag)


async def _answer_tag(running: _Running, reference: Reference, request: Request) -> Response:
    answer = await own_answer(running.context, running.told, reference)
    return Response(answer.encode(), headers=JSON_HEADERS)


async def _answer_shared(running: _Running, reference: Reference, request: Request) -> Response:
    if not running.is_shared(reference):
        return Response(status_code=404)
    told = await running.claims.acquire(reference, parse_within(request.query_params.get("within")))
    return Response(status_code=204) if told is None else Response(TagAnswer(told).encode(), headers=JSON_HEADERS)


async def _take_told(running: _Running, reference: Reference, request: Request) -> Response:
    if not running.is_shared(reference):
        return Response(status_code=404)
    running.claims.report(reference, parse_told(request.query_params.get("told")))
    return Response(status_code=204)


class _Running:
    """The resolver while it runs.

    Args:
        context: The mirror.
        tasks: Owns the questions that are under way.
        peers: Finds images on this host and on peers.
        tag_ttl: See `UpstreamResolver`.
        shares: Whether hosts share what registries said.

    Attributes:
        told: What registries said.
        claims: This host as a home of tags.
        listings: The tags and referrers of repositories.
    """

    def __init__(self, context: Context, tasks: Tasks, peers: PeersResolver, tag_ttl: float, *, shares: bool) -> None:
        limits = context.limits
        self.context = context
        self.peers = peers
        self.told = ToldTags(limits.lookup_keys, partial(context.limited, "lookup_keys"))
        timeout = limits.upstream_timeout
        self.claims = TagClaims(self.told, timeout=timeout, wait=timeout / 2, most=limits.lookup_keys)
        self._questions = Questions(context.upstream, tasks, limits)
        self.listings = Listings(context, tasks, peers, self._questions, tag_ttl)
        self._shared = SharedTags(context, self.claims, tag_ttl)
        self._shares = shares
        self._tasks = tasks
        self._tag_ttl = tag_ttl
        self._log = context.log
        self._fingerprints = Fingerprints()
        self._asking = SingleFlight[tuple[Reference, bytes], Answer](tasks)
        self._down: set[str] = set()

    def is_shared(self, reference: Reference) -> bool:
        """Return whether hosts share what the registry says about a tag."""
        return self._shares and not self.context.covers(reference.registry, reference.repository)

    async def resolve(self, reference: Reference, requester: Requester) -> Resolution | None:
        """Ask the registry, or guess if it does not answer."""
        key = (reference, self._fingerprints.of(requester.authorization))
        asking = self._asking.call(key, lambda: self._ask(reference, requester))
        answer = await self._questions.settle(reference.registry, asking)
        self._note_state(reference.registry, answer)
        demand_rights(answer, requester)
        match answer:
            case Readable(Descriptor() as descriptor):
                return Resolution(descriptor, is_confirmed=not self.is_shared(reference))
            case Unreachable(why, was_asked=True):
                return await self._guess(reference, why)
            case _:
                self._log.debug("%s: the registry decides: %s", reference, answer)
                return None

    async def _ask(self, reference: Reference, requester: Requester) -> Answer:
        """Ask the home of the tag, if tags are shared, and the registry if no other host does."""
        if not self.is_shared(reference):
            return await self._ask_registry(reference, requester)
        told = await self._shared.acquire(reference)
        if told is not None:
            self.told.note(reference, told.descriptor, told.age or 0.0)
            return Readable(told.descriptor)
        try:
            return await self._ask_registry(reference, requester)
        finally:
            told = self.told.get(reference, within=self._tag_ttl)
            self._tasks.start(self._shared.report(reference, told))

    async def _ask_registry(self, reference: Reference, requester: Requester) -> Answer:
        upstream = self.context.upstream
        registry, repository = reference.registry, reference.repository
        if requester.authorization is None:
            # What some were granted may be served to this requester if it can get no token now.
            within = LATELY if self.context.covers(registry, repository) else self._tag_ttl
            refused = await without_rights(upstream, registry, repository, within)
            if refused is not None:
                return refused
        question = Question(registry, repository, Endpoint.MANIFEST, reference.tag, requester.authorization)
        answer = await upstream.ask(question)
        match answer:
            case Readable(Descriptor() as descriptor):
                self.told.note(reference, descriptor)
            case Absent():
                self.told.forget(reference)
            case _:
                pass
        return answer

    async def _guess(self, reference: Reference, why: str) -> Resolution | None:
        found = await guess(self.context, self.told, reference)
        if found is None:
            self._log.info("%s: nobody here knows it, and %s does not answer: %s", reference, reference.registry, why)
            return None
        descriptor, age = found.known.descriptor, found.known.age
        since = "" if age is None else f" since {age:.0f} s"
        text = "%s: answered with %s, which %s%s, because %s does not answer: %s"
        self._log.warning(text, reference, descriptor.digest, found.source, since, reference.registry, why)
        return Resolution(descriptor, STALE)

    def _note_state(self, registry: str, answer: Answer) -> None:
        """Log when a registry answers again."""
        if isinstance(answer, Unreachable):
            if len(self._down) < self.context.limits.lookup_keys:
                self._down.add(registry)
        elif registry in self._down:
            self._down.discard(registry)
            self._log.info("%s answers again, so it decides again what its tags mean", registry)
