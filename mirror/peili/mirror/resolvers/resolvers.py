"""The built-in resolvers, by whom they believe."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from peili.mirror.errors import ConfigError, FailureReason, NotFound, PeerUnavailable, PluginNotFound, Unavailable
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.requests import Endpoint, Target
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.interfaces import Context, Resolver, ResolverLoader, running_already
from peili.mirror.plugins.loading import Plugins
from peili.mirror.support.options import Options


class DeferResolver(Resolver):
    """Never answers: tags are upstream's business, so that they are always fresh. The default."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        return None


class _Asking(Resolver):
    """A resolver that asks what the mirror has; outside of a mirror it has no opinion."""

    _context: Context | None = None

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._context is not None:
            raise running_already(self)
        self._context = context
        try:
            yield
        finally:
            self._context = None


class LocalResolver(_Asking):
    """Believes this host's store: a tag means what it meant when it was pulled or imported here."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        if self._context is None:
            return None
        try:
            return await self._context.store.resolve(reference)
        except NotFound:
            return None


class PeersResolver(_Asking):
    """Believes this host's store, then the first peer that has the tag: it means what it meant when they got it."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        context = self._context
        if context is None:
            return None
        with suppress(NotFound, Unavailable):
            return await context.store.resolve(reference)
        async with aclosing(context.router.lookup(reference)) as holders:
            async for holder in holders:
                try:
                    return await _ask(context, holder.peer, reference)
                except PeerUnavailable as error:
                    context.log.info("%s: passed over: %s", reference, error)
        return None


async def _ask(context: Context, peer: Peer, reference: Reference) -> Descriptor:
    target = Target(Endpoint.MANIFEST, reference.registry, reference.repository, tag=reference.tag)
    answer = await context.client.head(peer, target.path, timeout=context.limits.lookup_timeout)
    if answer.status != 200:
        raise PeerUnavailable(f"peer {peer.id} answered {answer.status}", FailureReason.REFUSED)
    headers = answer.headers
    try:
        digest = Digest(headers.get("docker-content-digest", ""))
        return Descriptor(headers.get("content-type", ""), digest, int(headers.get("content-length", "")))
    except ValueError as error:
        raise PeerUnavailable(
            f"peer {peer.id} does not say what {reference} is: {error}", FailureReason.WRONG
        ) from error


@dataclass(frozen=True, slots=True)
class Rule:
    """References that `pattern` is found in are asked of `resolvers`, in order, until one answers."""

    pattern: re.Pattern[str]
    resolvers: tuple[Resolver, ...]


_RULE = '{ match = "^docker.io/", use = ["local", "peers"] }'


class ChainResolver(Resolver):
    """Different resolvers for different references. The first rule that fits decides; where none fits, nobody answers.

    Options: ``rules``, a list of tables with ``match`` (a regular expression searched in
    ``registry/repository:tag``; without it the rule fits always) and ``use`` (names of resolvers, tried in order).
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls.from_plugins(config, Plugins())

    @classmethod
    @override
    def from_plugins(cls, config: Mapping[str, Any], plugins: ResolverLoader) -> Self:
        options = Options(config, "rules")
        rules = options.sequence("rules", f"a list of rules such as {_RULE}")
        return cls([_rule(options, f"rules[{n}]", each, plugins) for n, each in enumerate(rules)])

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for resolver in {id(each): each for rule in self._rules for each in rule.resolvers}.values():  # once each
                await stack.enter_async_context(resolver.run(context))
            yield

    @override
    def ready(self) -> bool:
        return all(resolver.ready() for rule in self._rules for resolver in rule.resolvers)

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        rule = next((each for each in self._rules if each.pattern.search(str(reference))), None)
        for resolver in rule.resolvers if rule else ():
            try:
                if (descriptor := await resolver.resolve(reference)) is not None:
                    return descriptor
            except Unavailable:
                continue  # the next one may know
        return None


def _rule(options: Options, place: str, value: object, plugins: ResolverLoader) -> Rule:
    rule = options.table(place, value, "match", "use", expected=f"a table such as {_RULE}")
    match: str = rule.value("match", str, "a regular expression", "")
    names = rule.sequence("use", 'a list of resolvers\' names, such as ["local", "peers"]')
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise rule.wrong("match", f"a regular expression ({error})") from error
    return Rule(pattern, tuple(_resolver(f"{place}.use[{n}]", name, plugins) for n, name in enumerate(names)))


def _resolver(key: str, name: object, plugins: ResolverLoader) -> Resolver:
    if not isinstance(name, str):
        raise ConfigError(key, f"the name of a resolver, not {name!r}")
    try:
        return plugins.resolver(name, {})
    except PluginNotFound as error:
        raise ConfigError(key, str(error)) from error
    except ConfigError as error:
        raise error.within(key) from error
