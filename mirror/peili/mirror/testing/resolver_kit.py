"""Checks what `Resolver` promises."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from peili.mirror.errors import Unavailable
from peili.mirror.oci.references import Descriptor, Reference
from peili.mirror.plugins.interfaces import Resolver, Router, Store
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing import plugin_kit
from peili.mirror.testing.contexts import context_for
from peili.mirror.testing.promises import (
    IN_TIME,
    Promises,
    eventually,
    expect,
    expect_cancellable,
    expect_type,
    fresh_bytes,
    keep,
)

_QUICK = 5.0  # seconds that one answer may take


class ResolverSubject(ABC):
    """A resolver to be checked, not entered: the kit does that, more than once.

    `store` and `router`, entered already, are what the mirror would give to it; None: empty ones.
    """

    resolver: Resolver
    store: Store | None = None
    router: Router | None = None

    @abstractmethod
    async def know(self, reference: Reference) -> Descriptor | None:
        """Let `reference` mean something to the resolver from now on; None where nothing ever does."""


ResolverFactory = Callable[[], AbstractAsyncContextManager[ResolverSubject]]
"""Gives a resolver with surroundings of its own at each call, and cleans up after it."""


async def check_resolver(factory: ResolverFactory, *, within: float = IN_TIME) -> None:
    """Check every promise of `Resolver`, each on one of its own. Raises ConformanceError for the first broken one."""
    for promise, check in PROMISES:
        async with factory() as subject:
            await keep(promise, check(subject), within)


@asynccontextmanager
async def _entered(subject: ResolverSubject) -> AsyncGenerator[Resolver]:
    resolver = subject.resolver
    async with context_for(resolver, store=subject.store, router=subject.router) as context, resolver.run(context):
        yield resolver


@asynccontextmanager
async def _running(subject: ResolverSubject) -> AsyncGenerator[Resolver]:
    async with _entered(subject) as resolver:
        await eventually(resolver.ready)
        yield resolver


async def _ready(subject: ResolverSubject) -> None:
    await plugin_kit.ready(subject.resolver, lambda: _entered(subject))


async def _entering(subject: ResolverSubject) -> None:
    await plugin_kit.entering(subject.resolver, lambda: _entered(subject))


async def _sharing(subject: ResolverSubject) -> None:
    await plugin_kit.sharing(subject.resolver, lambda: _entered(subject))


def _fresh_reference() -> Reference:
    return Reference("registry.example", "conformance/demo", fresh_bytes(4).hex())


async def _answer(resolver: Resolver, reference: Reference) -> Descriptor | None:
    async with Deadline(_QUICK):
        try:
            answer = await resolver.resolve(reference)
        except Unavailable:
            return None
    expect_type(answer, Descriptor, type(None))
    return answer


async def _until_known(subject: ResolverSubject) -> tuple[Reference, Descriptor | None]:
    """A reference that means something from now on, and what; its digest is what counts."""
    reference = _fresh_reference()
    meant = await subject.know(reference)
    while meant is not None and await _answer(subject.resolver, reference) is None:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
    return reference, meant


def _expect_same(answer: Descriptor | None, meant: Descriptor | None) -> None:
    digests = [each and each.digest for each in (answer, meant)]
    expect(digests[0] == digests[1], f"it gave {answer}, not {meant}")


async def _enter(subject: ResolverSubject) -> None:
    for _ in range(2):
        async with _running(subject) as resolver:
            reference, meant = await _until_known(subject)
            _expect_same(await _answer(resolver, reference), meant)


async def _unknown(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        _expect_same(await _answer(resolver, _fresh_reference()), None)


async def _known(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        known = [await _until_known(subject) for _ in range(3)]
        for reference, meant in known:
            answer = await _answer(resolver, reference)
            _expect_same(answer, meant)
            if answer is not None and meant is not None:
                right = (meant.media_type, meant.size)
                expect((answer.media_type, answer.size) == right, f"it gave {answer}, not {meant}")


async def _concurrent(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        known = [await _until_known(subject) for _ in range(3)] + [(_fresh_reference(), None) for _ in range(3)]
        answers = await asyncio.gather(*(_answer(resolver, reference) for reference, _ in known * 5))
        for answer, (_, meant) in zip(answers, known * 5, strict=True):
            _expect_same(answer, meant)


async def _cancel(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        reference, meant = await _until_known(subject)
        await expect_cancellable(lambda: _answer(resolver, reference))
        await expect_cancellable(lambda: _answer(resolver, _fresh_reference()))
        _expect_same(await _answer(resolver, reference), meant)


PROMISES: Promises = (
    ("a resolver can be entered, left and entered again, and is ready then", _enter),
    (plugin_kit.READY, _ready),
    (plugin_kit.ENTERING, _entering),
    (plugin_kit.SHARING, _sharing),
    ("a reference that means nothing gives None, or raises Unavailable", _unknown),
    ("a reference gives the descriptor of what it means", _known),
    ("resolve may be called concurrently", _concurrent),
    ("resolve can be cancelled, and called again", _cancel),
)
