"""Mix-in classes for stores, routers and resolvers that each break one promise of every plug-in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror import Context, Plugin


class EntersOnce(Plugin):
    _has_exited = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._has_exited:
            raise RuntimeError("entered before")
        async with super().run(context):
            yield
        self._has_exited = True


class StaysEntered(Plugin):
    """Does not clean up if it is cancelled."""

    _entered = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._entered:
            raise RuntimeError("entered already")
        self._entered = True
        await asyncio.sleep(0)
        async with super().run(context):
            yield
        self._entered = False


class ForgetsTheFirst(Plugin):
    """The exit of the second user ends it for the first user, too."""

    _context: Context | None = None

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self._context = context
        try:
            yield
        finally:
            self._context = None

    @override
    def ready(self) -> bool:
        return self._context is not None


class SlowReady(Plugin):
    @override
    def ready(self) -> bool:
        time.sleep(0.006)
        return super().ready()
