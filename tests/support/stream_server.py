"""A TCP server whose connections end with it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the client closes."""
    await reader.read()


@asynccontextmanager
async def stream_server(
    serve: Serve, address: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[int]:
    """Call `serve` for each connection to a free port, and yield the port.

    A connection is closed when `serve` returns. `serve` may raise OSError or IncompleteReadError. At the end, each
    connection that is still open is aborted. On a slow machine, the event loop would otherwise end first, and leave
    sockets open.
    """
    running: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    # Not a coroutine function: asyncio would start a task of its own, and log that it was cancelled.
    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(run(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(connected, address, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(0)  # the transports call connection_lost
