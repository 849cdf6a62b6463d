"""Operations of a TLS socket that does not block, in asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def retry(secured: ssl.SSLSocket, operation: Callable[[], _T]) -> _T:
    """Call an operation of `secured` until it need not wait for the other side any more. Return its result.

    Only one task may do this at a time, and no other code may let the loop watch the socket. Raises what `operation`
    raises.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            await _wait(secured, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _wait(secured, loop.add_writer, loop.remove_writer)


async def _wait(secured: ssl.SSLSocket, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    descriptor = secured.fileno()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(descriptor, set_ready)
    try:
        await ready
    finally:
        remove(descriptor)
