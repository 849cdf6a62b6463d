"""The built-in resolvers, and chains of them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from typing_extensions import override

from peili.mirror import (
    RESOLVERS,
    ConfigError,
    Descriptor,
    Holder,
    Key,
    Mirror,
    Peer,
    Plugins,
    Reference,
    Resolver,
    Router,
    Unavailable,
    serve,
)
from peili.mirror.resolvers import ChainResolver, DeferResolver, LocalResolver, PeersResolver
from peili.mirror.resolvers.chain import Rule
from peili.mirror.testing import ResolverSubject, check_options, check_resolver, context_for
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DEMO = Reference.parse("registry.example/demo:v1")


class OneHolder(Router):
    """Returns a peer that does not exist, then one that has everything."""

    def __init__(self, peer: Peer) -> None:
        self._holders = [Holder(each, complete=True) for each in (Peer("gone", ("http://127.0.0.1:1",)), peer)]

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        for each in self._holders:
            yield each

    @override
    def peers(self) -> Collection[Peer]:
        return [each.peer for each in self._holders]


class Subject(ResolverSubject):
    """Yield a resolver, and the store that it reads, if there is one."""

    def __init__(self, resolver: Resolver, known: MemoryStore | None) -> None:
        self.resolver = resolver
        self.known = known

    @override
    async def know(self, reference: Reference) -> Descriptor | None:
        if self.known is None:
            return None
        descriptor = self.known.add(b'{"schemaVersion": 2, "manifests": [], "of": "%s"}' % str(reference).encode())
        self.known.tag(reference, descriptor)
        return descriptor


@asynccontextmanager
async def deferring() -> AsyncGenerator[ResolverSubject]:
    yield Subject(DeferResolver(), None)


@asynccontextmanager
async def local() -> AsyncGenerator[ResolverSubject]:
    subject = Subject(LocalResolver(), MemoryStore())
    subject.store = subject.known
    yield subject


@asynccontextmanager
async def peers() -> AsyncGenerator[ResolverSubject]:
    subject = Subject(PeersResolver(), MemoryStore())
    assert subject.known is not None
    other = Mirror(subject.known, MemoryRouter())
    async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0"):
        subject.router = OneHolder(other.identity)
        yield subject


@asynccontextmanager
async def chain() -> AsyncGenerator[ResolverSubject]:
    resolver = Plugins().resolver("chain", {"rules": [{"use": ["defer", "peers", "local"]}]})
    subject = Subject(resolver, MemoryStore())
    subject.store = subject.known
    yield subject


@pytest.mark.parametrize("factory", [deferring, local, peers, chain])
async def test_built_in_resolvers_keep_every_promise(factory: Any) -> None:
    await check_resolver(factory)


@pytest.mark.parametrize(
    ("resolver", "options"),
    [
        (ChainResolver, {"rules": [{"match": "^docker.io/", "use": ["local", "peers"]}]}),
        (DeferResolver, {}),
        (LocalResolver, {}),
        (PeersResolver, {}),
    ],
)
def test_a_resolver_checks_its_options(resolver: type[Resolver], options: Mapping[str, Any]) -> None:
    check_options(resolver, options)


class Knowing(Resolver):
    """Returns a fixed answer, and counts its calls."""

    def __init__(self, answer: Descriptor | Unavailable | None) -> None:
        self.answer = answer
        self.calls = 0

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        self.calls += 1
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return self.answer


ONE, TWO = (MemoryStore().add(each) for each in (b"one", b"two"))
ANSWERS = {"none": None, "away": Unavailable("away"), "one": ONE, "two": TWO}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([{"use": ["one"]}], ONE),
        ([{"use": ["none", "one", "two"]}], ONE),
        ([{"use": ["away", "two"]}], TWO),
        ([{"use": ["none", "away"]}], None),
        ([{"match": "^registry\\.example/", "use": ["one"]}, {"use": ["two"]}], ONE),
        ([{"match": "^docker\\.io/", "use": ["one"]}, {"use": ["two"]}], TWO),
        ([{"match": ":v1$", "use": ["none"]}, {"use": ["two"]}], None),  # the first that fits decides
        ([{"match": "^docker\\.io/", "use": ["one"]}], None),
    ],
)
async def test_the_first_matching_rule_of_a_chain_decides_and_its_resolvers_are_asked_in_order(
    rules: list[dict[str, Any]], expected: Descriptor | None
) -> None:
    plugins = Plugins()
    for name, answer in ANSWERS.items():
        plugins.register(RESOLVERS, name, knowing(answer))
    resolver = plugins.resolver("chain", {"rules": rules})
    async with context_for(resolver) as context, resolver.run(context):
        assert await resolver.resolve(DEMO) == expected


def knowing(answer: Descriptor | Unavailable | None) -> type[Knowing]:
    class Known(Knowing):
        def __init__(self) -> None:
            super().__init__(answer)

    return Known


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "rules: a list of rules such as "),
    ({"rules": []}, "rules: a list of rules such as "),
    ({"rules": "local"}, "rules: a list of rules such as "),
    ({"rule": []}, "rule: unknown option; did you mean rules? there are: rules"),
    ({"rules": ["local"]}, "rules[0]: a table such as "),
    ({"rules": [{"use": ["local"], "with": 1}]}, "rules[0].with: unknown option; there are: match, use"),
    ({"rules": [{"use": ["local"]}, {"use": []}]}, "rules[1].use: a list of resolvers' names"),
    ({"rules": [{"use": "local"}]}, "rules[0].use: a list of resolvers' names"),
    ({"rules": [{"use": ["local", 1]}]}, "rules[0].use[1]: the name of a resolver, not 1"),
    (
        {"rules": [{"match": "(", "use": ["local"]}]},
        "rules[0].match: a regular expression (missing ), ",
    ),
    ({"rules": [{"match": 1, "use": ["local"]}]}, "rules[0].match: a regular expression, not 1"),
    (
        {"rules": [{"use": ["locale"]}]},
        "rules[0].use[0]: no resolver is called 'locale'; there are: chain, defer, local, peers",
    ),
    ({"rules": [{"use": ["chain"]}]}, "rules[0].use[0].rules: a list of rules such as "),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_rule_of_a_chain_is_reported_in_one_line_with_its_place(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Plugins().resolver("chain", config)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["defer", "local", "peers"])
def test_the_other_resolvers_have_no_options(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^option: unknown option"):
        Plugins().resolver(kind, {"option": 1})


async def test_a_resolver_that_is_not_entered_returns_none() -> None:
    for resolver in (DeferResolver(), LocalResolver(), PeersResolver()):
        assert await resolver.resolve(DEMO) is None


@pytest.mark.parametrize("kind", [LocalResolver, PeersResolver])
async def test_a_resolver_serves_one_mirror_at_a_time(kind: type[Resolver]) -> None:
    resolver, store = kind(), MemoryStore()
    store.tag(DEMO, here := store.add(b"here"))
    async with context_for(resolver, store=store) as context, resolver.run(context):
        async with context_for(resolver) as other:
            with pytest.raises(RuntimeError, match="running already"):
                async with resolver.run(other):
                    pass
        assert await resolver.resolve(DEMO) == here


async def test_a_chain_enters_a_resolver_of_several_rules_once() -> None:
    local, store = LocalResolver(), MemoryStore()
    store.tag(DEMO, here := store.add(b"here"))
    chain = ChainResolver([Rule(re.compile("^docker"), (local,)), Rule(re.compile(""), (DeferResolver(), local))])
    async with context_for(chain, store=store) as context, chain.run(context):
        assert await chain.resolve(DEMO) == here
    assert await local.resolve(DEMO) is None
