"""Enters a store alone, and waits for what it is to do in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from peili.mirror import Content, Store
from peili.mirror.testing import entered

PROMPT = 60.0
"""Seconds that a test waits for a change to be seen. Two are promised, of a machine that has time."""


@asynccontextmanager
async def ready(store: Store) -> AsyncGenerator[None, None]:
    """Enter `store`, and wait until it is ready."""
    async with entered(store):
        await eventually(store.ready, "the store is ready", within=PROMPT)
        yield


async def eventually(condition: Callable[[], object], what: str, *, within: float = PROMPT) -> None:
    """Wait until `condition` is true. Fails the test when it is not within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {within:g} s in vain: {what}")
        await asyncio.sleep(0.01)


async def read_all(content: Content, piece: int = 1 << 20) -> bytes:
    """Everything, waiting for what is still to arrive."""
    data, buffer = bytearray(), memoryview(bytearray(piece))
    while not content.complete or len(data) < content.available:
        await content.wait(len(data))
        data += buffer[: await content.readinto(len(data), buffer)]
    return bytes(data)
