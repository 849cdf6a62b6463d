"""A resolver that is made of other resolvers, chosen by patterns."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from starlette.routing import BaseRoute
from typing_extensions import override

from peili.mirror.errors import ConfigError, PluginNotFound, Unavailable
from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.oci.requests import Requester
from peili.mirror.plugins.interfaces import Context
from peili.mirror.plugins.loading import Plugins
from peili.mirror.plugins.resolver import Listed, Resolution, Resolver, ResolverLoader
from peili.mirror.support.options import Options

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Rule:
    """If `pattern` is found in a reference, `resolvers` are asked in this order until one answers."""

    pattern: re.Pattern[str]
    resolvers: tuple[Resolver, ...]


_RULE = '{ match = "^docker.io/", use = ["local", "peers"] }'


class ChainResolver(Resolver):
    """Asks different resolvers for different references.

    The first rule whose pattern is found in ``registry/repository:tag`` decides. If there is none, the answer is None.
    The only option is ``rules``, a list of tables. A table has ``use``, the names of resolvers, which are asked in this
    order. It may have ``match``, a regular expression; without it, the rule applies to every reference.
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
            for resolver in self._resolvers():
                await stack.enter_async_context(resolver.run(context))
            yield

    @override
    def ready(self) -> bool:
        return all(resolver.ready() for resolver in self._resolvers())

    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        async def listed(resolver: Resolver) -> Listed[str]:
            return Listed(tuple(await resolver.tags(registry, repository, stored)))

        return (await self._tags(registry, repository, listed)).items

    @override
    async def tags_for(
        self, registry: str, repository: str, stored: Collection[str], requester: Requester
    ) -> Listed[str]:
        return await self._tags(
            registry, repository, lambda resolver: resolver.tags_for(registry, repository, stored, requester)
        )

    async def _tags(
        self, registry: str, repository: str, ask: Callable[[Resolver], Awaitable[Listed[str]]]
    ) -> Listed[str]:
        """Return the tags that `resolve` answers: of each resolver, those for which its rule is the first one."""
        found: set[str] = set()
        warning: str | None = None
        for rule in self._rules:
            for resolver in rule.resolvers:
                with suppress(Unavailable):
                    listed = await ask(resolver)
                    fit = {
                        each for each in listed.items if self._rule_for(Reference(registry, repository, each)) is rule
                    }
                    found |= fit
                    warning = warning or (listed.warning if fit else None)
        return Listed(tuple(found), warning)

    @override
    async def referrers_for(
        self, registry: str, repository: str, digest: Digest, requester: Requester
    ) -> Listed[Mapping[str, Any]] | None:
        for resolver in self._resolvers():
            with suppress(Unavailable):
                if (found := await resolver.referrers_for(registry, repository, digest, requester)) is not None:
                    return found
        return None

    @override
    def routes(self) -> Sequence[BaseRoute]:
        return [route for resolver in self._resolvers() for route in resolver.routes()]

    def _resolvers(self) -> Sequence[Resolver]:
        """Return all resolvers, each once."""
        return tuple({id(each): each for rule in self._rules for each in rule.resolvers}.values())

    def _rule_for(self, reference: Reference) -> Rule | None:
        return next((each for each in self._rules if each.pattern.search(str(reference))), None)

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        return await self._first(reference, lambda resolver: resolver.resolve(reference))

    @override
    async def resolve_for(self, reference: Reference, requester: Requester) -> Resolution | None:
        return await self._first(reference, lambda resolver: resolver.resolve_for(reference, requester))

    async def _first(self, reference: Reference, ask: Callable[[Resolver], Awaitable[_T | None]]) -> _T | None:
        """Return the first answer of the resolvers for `reference`."""
        rule = self._rule_for(reference)
        for resolver in rule.resolvers if rule else ():
            try:
                if (answer := await ask(resolver)) is not None:
                    return answer
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
