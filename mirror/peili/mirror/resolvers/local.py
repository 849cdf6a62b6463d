"""The default resolver, which leaves tags to upstream, and one that asks this host's store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror.errors import NotFound
from peili.mirror.oci.references import Descriptor, Reference
from peili.mirror.plugins.interfaces import Context, running_already
from peili.mirror.plugins.resolver import Resolver


class DeferResolver(Resolver):
    """Never answers, so that the runtime asks upstream and receives the current digest. The default."""

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        return None

    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        return ()


class LocalResolver(Resolver):
    """Answers from this host's store: a tag means what it meant when the image was pulled or imported here.

    It returns None while it is not entered.
    """

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

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        if self._context is None:
            return None
        try:
            return await self._context.store.resolve(reference)
        except NotFound:
            return None

    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        return () if self._context is None else stored
