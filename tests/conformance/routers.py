"""The built-in routers as the conformance kits want them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror import Have, Key, MembershipRouter, Peer, PushRouter
from peili.mirror.testing import MembershipSubject, RouterSubject
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.routers.static import StaticRouter


class StaticSubject(MembershipSubject):
    """Members that can't change."""

    def __init__(self, router: MembershipRouter) -> None:
        self.router = router

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        return False


class PushSubject(MembershipSubject):
    def __init__(self, router: PushRouter) -> None:
        self.router = self._pushed = router

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        self._pushed.set(members)
        return True


class MemorySubject(RouterSubject):
    """A memory router, and one other host on its network."""

    def __init__(self, kind: type[MemoryRouter] = MemoryRouter) -> None:
        self._network = MemoryNetwork()
        self._other = Peer("other", ("http://127.0.0.1:9",))
        self._network.hosts["other"] = self._other
        self._network.holdings["other"] = {}
        self.router = kind(self._network)

    @override
    async def hold(self, key: Key) -> Peer:
        self._network.holdings["other"][key] = Have(key, 10)
        return self._other

    @override
    async def drop(self, key: Key) -> None:
        del self._network.holdings["other"][key]


@asynccontextmanager
async def static_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    yield StaticSubject(StaticRouter(members))


@asynccontextmanager
async def push_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    router = PushRouter()
    router.set(members)
    yield PushSubject(router)


@asynccontextmanager
async def memory_router() -> AsyncGenerator[RouterSubject]:
    yield MemorySubject()
