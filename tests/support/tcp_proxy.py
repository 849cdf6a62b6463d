"""A TCP proxy on loopback whose connections a test cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress


class TcpProxy:
    """Forwards connections to a port of 127.0.0.1.

    Attributes:
        port: The port of the proxy.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Accept connections, after `refuse` at the same port as before."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Accept no new connections."""
        if self._server is not None:
            self._server.close()

    def cut(self) -> None:
        """Break all connections without a goodbye."""
        for each in self._writers:
            each.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, target}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, target))
                tasks.create_task(_copy(target_reader, writer))
        finally:
            self._writers -= {writer, target}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tcp_proxy(target: int) -> AsyncGenerator[TcpProxy]:
    """Run a proxy for the port `target` of 127.0.0.1."""
    proxy = TcpProxy(target)
    await proxy.listen()
    try:
        yield proxy
    finally:
        proxy.refuse()
        proxy.cut()
