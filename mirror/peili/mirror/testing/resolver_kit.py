"""The conformance kit for `Resolver`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from operator import attrgetter

from peili.mirror.errors import Unavailable
from peili.mirror.limits import Limits
from peili.mirror.oci.references import Descriptor, Reference
from peili.mirror.plugins.interfaces import Router, Store
from peili.mirror.plugins.resolver import Resolver
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing.conformance import (
    DEFAULT_TIMEOUT,
    Promises,
    check_promises,
    eventually,
    expect,
    expect_cancellable,
    expect_type,
    fresh_bytes,
    plugin_promises,
)
from peili.mirror.testing.contexts import context_for
from peili.mirror.upstream.client import UpstreamClient

_STEP_TIMEOUT = 5.0  # seconds for one call of resolve
_PATIENT = Limits(lookup_timeout=0.9 * _STEP_TIMEOUT)  # on a busy machine, peers and homes answer late


class ResolverSubject(ABC):
    """A resolver to be checked, and a way to let references point to something.

    Attributes:
        resolver: The resolver, not entered. The kit enters it more than once.
        store: The mirror's store, already entered; None for an empty one.
        router: The mirror's router, already entered; None for one without peers.
        upstream: What asks registries, already entered; None if every registry is unreachable.
    """

    resolver: Resolver
    store: Store | None = None
    router: Router | None = None
    upstream: UpstreamClient | None = None

    @abstractmethod
    async def know(self, reference: Reference) -> Descriptor | None:
        """Let `reference` point to something from now on.

        Returns:
            What the resolver should return; None if it never returns anything, like the resolver ``defer``.
        """


ResolverFactory = Callable[[], AbstractAsyncContextManager[ResolverSubject]]
"""Returns a context manager that creates a resolver with its own store and router, and cleans up on exit."""


async def check_resolver(factory: ResolverFactory, *, within: float = DEFAULT_TIMEOUT) -> None:
    """Check every promise of `Resolver`, each on a new resolver.

    Args:
        factory: Creates the resolver.
        within: Seconds in which each promise must be kept, by default 30.

    Raises:
        ConformanceError: A promise is broken; the first one that was found.
    """
    await check_promises(PROMISES, factory, within)


@asynccontextmanager
async def _entered(subject: ResolverSubject) -> AsyncGenerator[Resolver]:
    resolver = subject.resolver
    parts = context_for(
        resolver, store=subject.store, router=subject.router, upstream=subject.upstream, limits=_PATIENT
    )
    async with parts as context, resolver.run(context):
        yield resolver


@asynccontextmanager
async def _running(subject: ResolverSubject) -> AsyncGenerator[Resolver]:
    async with _entered(subject) as resolver:
        await eventually(resolver.ready)
        yield resolver


def _fresh_reference() -> Reference:
    return Reference("registry.example", "conformance/demo", fresh_bytes(4).hex())


async def _resolve(resolver: Resolver, reference: Reference) -> Descriptor | None:
    async with Deadline(_STEP_TIMEOUT):
        try:
            result = await resolver.resolve(reference)
        except Unavailable:
            return None
    expect_type(result, Descriptor, type(None))
    return result


async def _until_known(subject: ResolverSubject) -> tuple[Reference, Descriptor | None]:
    """Return a reference that points to something from now on, and what the resolver should return for it."""
    reference = _fresh_reference()
    expected = await subject.know(reference)
    while expected is not None and await _resolve(subject.resolver, reference) is None:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.02)
    return reference, expected


def _expect_same(result: Descriptor | None, expected: Descriptor | None) -> None:
    digests = [each and each.digest for each in (result, expected)]
    expect(digests[0] == digests[1], f"it returned {result}, not {expected}")


async def _enter(subject: ResolverSubject) -> None:
    for _ in range(2):
        async with _running(subject) as resolver:
            reference, expected = await _until_known(subject)
            _expect_same(await _resolve(resolver, reference), expected)


async def _unknown(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        _expect_same(await _resolve(resolver, _fresh_reference()), None)


async def _known(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        known = [await _until_known(subject) for _ in range(3)]
        for reference, expected in known:
            result = await _resolve(resolver, reference)
            _expect_same(result, expected)
            if result is not None and expected is not None:
                right = (expected.media_type, expected.size)
                expect((result.media_type, result.size) == right, f"it returned {result}, not {expected}")


async def _concurrent(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        known = [await _until_known(subject) for _ in range(3)] + [(_fresh_reference(), None) for _ in range(3)]
        results = await asyncio.gather(*(_resolve(resolver, reference) for reference, _ in known * 5))
        for result, (_, expected) in zip(results, known * 5, strict=True):
            _expect_same(result, expected)


async def _tags(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        reference, expected = await _until_known(subject)
        unknown = _fresh_reference().tag
        async with Deadline(_STEP_TIMEOUT):
            tags = await resolver.tags(reference.registry, reference.repository, [reference.tag])
        expect((reference.tag in tags) == (expected is not None), f"tags returned {tags}, not what resolve answers")
        expect(unknown not in tags, f"tags returned {unknown}, which nobody has")


async def _cancel(subject: ResolverSubject) -> None:
    async with _running(subject) as resolver:
        reference, expected = await _until_known(subject)
        await expect_cancellable(lambda: _resolve(resolver, reference))
        await expect_cancellable(lambda: _resolve(resolver, _fresh_reference()))
        _expect_same(await _resolve(resolver, reference), expected)


PROMISES: Promises = (
    ("a resolver can be entered, exited and entered again, and is ready then", _enter),
    *plugin_promises(attrgetter("resolver"), _entered),
    ("an unknown reference returns None, or raises Unavailable", _unknown),
    ("a known reference returns its descriptor", _known),
    ("tags are those that resolve answers, of the ones in the store", _tags),
    ("resolve may be called concurrently", _concurrent),
    ("resolve can be cancelled, and called again", _cancel),
)
