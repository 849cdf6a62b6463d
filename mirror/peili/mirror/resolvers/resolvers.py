"""The built-in resolvers, by whom they believe."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, cast

from typing_extensions import override

from peili.mirror.errors import ConfigError, FailureReason, NotFound, PeerUnavailable, PluginNotFound, Unavailable
from peili.mirror.oci.paths import Endpoint, Target
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.peer_api.peers import Peer
from peili.mirror.plugins.loading import Plugins
from peili.mirror.plugins.plugin import Context, running_already
from peili.mirror.plugins.resolver import Resolver


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
    def from_plugins(cls, config: Mapping[str, Any], plugins: Plugins) -> Self:
        for key in config:
            if key != "rules":
                raise ConfigError(key, "unknown option; a chain has: rules")
        rules: object = config.get("rules")
        if not isinstance(rules, list) or not rules:
            raise ConfigError("rules", 'a list of rules such as { match = "^docker.io/", use = ["local", "peers"] }')
        return cls([_rule(f"rules[{n}]", each, plugins) for n, each in enumerate(cast("list[object]", rules))])

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


def _rule(key: str, rule: object, plugins: Plugins) -> Rule:
    if not isinstance(rule, Mapping):
        raise ConfigError(key, 'a table such as { match = "^docker.io/", use = ["local", "peers"] }')
    table = cast("Mapping[str, object]", rule)
    if unknown := next((name for name in table if name not in {"match", "use"}), None):
        raise ConfigError(f"{key}.{unknown}", "unknown option; a rule has: match, use")
    match, use = table.get("match", ""), table.get("use")
    if not isinstance(match, str):
        raise ConfigError(f"{key}.match", f"a regular expression, not {match!r}")
    if not isinstance(use, list) or not use:
        raise ConfigError(f"{key}.use", 'a list of resolvers\' names, such as ["local", "peers"]')
    names = cast("list[object]", use)
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise ConfigError(f"{key}.match", f"a regular expression; {match!r} is none: {error}") from error
    return Rule(pattern, tuple(_resolver(f"{key}.use[{n}]", name, plugins) for n, name in enumerate(names)))


def _resolver(key: str, name: object, plugins: Plugins) -> Resolver:
    if not isinstance(name, str):
        raise ConfigError(key, f"the name of a resolver, not {name!r}")
    try:
        return plugins.resolver(name, {})
    except PluginNotFound as error:
        raise ConfigError(key, str(error)) from error
    except ConfigError as error:
        raise error.within(key) from error
