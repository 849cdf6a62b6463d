"""The base of stores around another store. By itself it shows what the other one has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence

from typing_extensions import override

from peili.mirror.oci.references import Descriptor, Digest, Reference
from peili.mirror.plugins.checks import answer, check, plain
from peili.mirror.plugins.content import Content, StoreEvent
from peili.mirror.plugins.interfaces import Store


class WrappedStore(Store):
    """Passes on each call to `store`. A subclass overrides what it shows differently.

    It is no plug-in: the mirror enters `store` itself.

    A store is third-party code, so the types of what it returns are checked here.

    Attributes:
        name: The class of the innermost store, for errors.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name: str = store.name if isinstance(store, WrappedStore) else type(store).__name__

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        return await answer(self._store.resolve(reference), Descriptor, f"{self.name}.resolve")

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return await answer(self._store.describe(digest), Descriptor, f"{self.name}.describe")

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return await answer(self._store.open(digest, partial=partial), Content, f"{self.name}.open")

    @override
    def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        batches = plain(self._store.watch(), f"{self.name}.watch", "an async generator (async def, with yield)")
        check(batches, AsyncGenerator, f"{self.name}.watch returned")
        return batches

    @override
    async def images(self) -> Sequence[tuple[Reference, Descriptor]]:
        return await answer(self._store.images(), Collection, f"{self.name}.images")

    @override
    async def tagged_at(self, reference: Reference) -> float | None:
        return await self._store.tagged_at(reference)

    @override
    async def repositories(self) -> Collection[tuple[str, str, Digest]]:
        return await self._store.repositories()

    @override
    async def was_fetched(self, digest: Digest) -> bool | None:
        return await self._store.was_fetched(digest)

    @override
    def shows_in_flight(self) -> bool:
        return plain(self._store.shows_in_flight(), f"{self.name}.shows_in_flight")

    @override
    async def discard(self, digest: Digest) -> bool:
        return await self._store.discard(digest)
