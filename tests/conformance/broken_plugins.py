"""What any plug-in can break: classes to mix into stores, routers and resolvers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror import Context, Plugin


class EntersOnce(Plugin):
    _left = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        if self._left:
            raise RuntimeError("once is enough")
        async with super().run(context):
            yield
        self._left = True


class StaysEntered(Plugin):
    """Cleans up only where nothing happens in between."""

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
    """Is left for all who entered it when the last of them leaves."""

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


class SlowToSay(Plugin):
    @override
    def ready(self) -> bool:
        time.sleep(0.006)
        return super().ready()
