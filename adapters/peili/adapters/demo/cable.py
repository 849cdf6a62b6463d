"""The cable to a host's peer door, which can be cut in mid-sentence, at a given byte.

A server that is told to end is not that exact: what it has handed to the kernel still arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable

_PIECE = 1 << 18
"""Bytes that are carried at once."""


class Cable:
    """Carries connections from a port of its own, at `address`, to another one on loopback."""

    def __init__(self, to: int) -> None:
        self._to = ("127.0.0.1", to)
        self._from = socket.create_server(("127.0.0.1", 0))
        self._from.setblocking(False)
        self.address = f"127.0.0.1:{self._from.getsockname()[1]}"
        self._left: float = math.inf
        self._tell: Callable[[], None] = lambda: None
        self._carrying: asyncio.Task[None] | None = None

    def lay(self) -> None:
        """It carries from now on."""
        self._carrying = asyncio.create_task(self._carry())

    def cut_after(self, count: int, tell: Callable[[], None]) -> None:
        """Carry `count` more bytes of what the host says, and nothing after them; then call `tell`."""
        self._left, self._tell = count, tell

    async def aclose(self) -> None:
        """Cut it. Idempotent."""
        if self._carrying is not None:
            self._carrying.cancel()
            await asyncio.wait([self._carrying])
        self._from.close()

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        with self._from:
            async with asyncio.TaskGroup() as connections:
                while True:
                    near, _ = await loop.sock_accept(self._from)
                    connections.create_task(self._connect(near))

    async def _connect(self, near: socket.socket) -> None:
        """Carry between `near` and the other end, until one of the two says no more."""
        with near, socket.socket() as far, contextlib.suppress(ConnectionError):
            far.setblocking(False)
            await asyncio.get_running_loop().sock_connect(far, self._to)
            ways = [asyncio.create_task(self._ask(near, far)), asyncio.create_task(self._answer(far, near))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _ask(self, near: socket.socket, far: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(near, _PIECE):
            await loop.sock_sendall(far, data)

    async def _answer(self, far: socket.socket, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(far, _PIECE):
            data = data[: int(min(len(data), self._left))]  # other connections have had their part of it meanwhile
            if not data:
                return
            self._left -= len(data)
            await loop.sock_sendall(near, data)
            if not self._left and self._carrying is not None:
                self._carrying.cancel()
                self._tell()
                return
