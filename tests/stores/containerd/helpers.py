"""Helpers that enter a store and wait for conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from peili.mirror import Content, Store
from peili.mirror.testing import entered

PROMPT = 60.0
"""Seconds that a test waits for a change to be visible. peili needs at most 2 on a machine that is not busy."""


@asynccontextmanager
async def ready(store: Store) -> AsyncGenerator[None, None]:
    """Enter `store`, and wait until it is ready."""
    async with entered(store):
        await eventually(store.ready, "the store is ready", within=PROMPT)
        yield


async def eventually(condition: Callable[[], object], what: str, *, within: float = PROMPT) -> None:
    """Wait until `condition` is true. Fails the test after `within` seconds; `what` describes the condition."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not true after {within:g} s: {what}")
        await asyncio.sleep(0.01)


async def read_all(content: Content, piece: int = 1 << 20) -> bytes:
    """Read the whole content, and wait for bytes that are not available yet."""
    data, buffer = bytearray(), memoryview(bytearray(piece))
    while not content.complete or len(data) < content.available:
        await content.wait(len(data))
        data += buffer[: await content.readinto(len(data), buffer)]
    return bytes(data)
