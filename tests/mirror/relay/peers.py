"""Peers for the tests of the relay: raw HTTP servers on loopback. A script decides whether they are honest."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.support.ports import free_port

from peili.mirror import Digest, Holder, Peer, detect_media_type

PIECE = 64 * 1024


@dataclass(frozen=True)
class RecordedRequest:
    """One request that a peer received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Exchange:
    """One request that a script answers."""

    request: RecordedRequest
    content: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = field(default=0)
    is_silent: bool = field(default=False)
    digest: Digest | None = None  # of `content`, if it is known: hashing large content takes long

    @property
    def part(self) -> tuple[int, int]:
        """The start and the stop of the requested bytes."""
        if self.request.range is None:
            return 0, len(self.content)
        first, last = self.request.range.removeprefix("bytes=").split("-")
        if not first:
            return max(0, len(self.content) - int(last)), len(self.content)
        return int(first), min(int(last) + 1, len(self.content)) if last else len(self.content)

    @property
    def body(self) -> bytes:
        start, stop = self.part
        return self.content[start:stop]

    async def head(self, status: int | None = None, **headers: str) -> None:
        """Send the status line and the headers. `headers` replace the honest ones; an empty one is not sent."""
        start, stop = self.part
        fields = {
            "content-length": str(stop - start),
            "docker-content-digest": self.digest or Digest.of(self.content),
            "content-type": detect_media_type(self.content),
        }
        if self.request.range is not None:
            fields["content-range"] = f"bytes {start}-{stop - 1}/{len(self.content)}"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value]
        code = status or (200 if self.request.range is None else 206)
        await self.send(f"HTTP/1.1 {code} x\r\n{''.join(lines)}\r\n".encode())

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self.writer.write(piece)
            await self.writer.drain()
            self.sent += len(piece)

    async def silence(self) -> None:
        """Send nothing more until the other side closes."""
        self.is_silent = True
        await self.reader.read()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]


class SaysReceived(ABC):
    """The base of a script that also answers what its peer received."""

    @abstractmethod
    async def __call__(self, exchange: Exchange) -> None: ...


class ScriptedPeer:
    """Has `content`, and lets `script` answer each request for it. Records the requests.

    If its script does not say what it received, the peer does not know. The requests for that are `questions`.
    """

    def __init__(self, name: str, content: bytes, script: Script) -> None:
        self.name = name
        self.content = content
        self.script = script
        self.requests: list[RecordedRequest] = []
        self.questions: list[RecordedRequest] = []
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open = 0
        self.urls: tuple[str, ...] = ()

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.urls)

    @property
    def holder(self) -> Holder:
        return Holder(self.peer, complete=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while not writer.is_closing():
                    await self._answer(reader, writer)
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.strip().split("\r\n")
        method, path, _ = request.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        recorded = RecordedRequest(method, path, headers, body)
        exchange = Exchange(recorded, self.content, reader, writer)
        if path.startswith("/_relay/") and not isinstance(self.script, SaysReceived):
            self.questions.append(recorded)
            await exchange.head(404, content_length="0")
            return
        self.requests.append(recorded)
        self.exchanges.append(exchange)
        await self.script(exchange)


@asynccontextmanager
async def listening(
    scripted: ScriptedPeer, address: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[ScriptedPeer]:
    """Serve `scripted` on a free port."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(scripted.serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)
        with suppress(asyncio.CancelledError):
            await task

    server = await asyncio.start_server(serve, address, 0, ssl=tls)
    host = f"[{address}]" if ":" in address else address
    scripted.urls = (*scripted.urls, f"{'https' if tls else 'http'}://{host}:{server.sockets[0].getsockname()[1]}")
    try:
        yield scripted
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def peers(content: bytes, *scripts: Script) -> AsyncGenerator[list[ScriptedPeer]]:
    """Serve one peer for each script. Their ids are a, b, …"""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(listening(ScriptedPeer("abcdefgh"[place], content, script)))
            for place, script in enumerate(scripts)
        ]


def refusing_url() -> str:
    """Return a URL that refuses connections."""
    return f"http://127.0.0.1:{free_port()}"


async def honest(exchange: Exchange) -> None:
    start, stop = exchange.part
    if start >= stop and exchange.request.range:
        size = len(exchange.content)
        await exchange.head(416, content_length="0", content_range=f"bytes */{size}", content_type="application/json")
        return
    await exchange.head()
    if exchange.request.method == "GET":
        await exchange.send(exchange.body)


async def silent(exchange: Exchange) -> None:
    await exchange.silence()


async def silent_after_head(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.silence()


async def breaks_connections(exchange: Exchange) -> None:
    exchange.reset()


def resets_after(count: int) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:count])
        await asyncio.sleep(0.05)  # a reset discards bytes that were sent but not read yet
        exchange.reset()

    return script


def short_after(count: int) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:count])
        exchange.close()

    return script


def silent_after(count: int) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:count])
        await exchange.silence()

    return script


def drips_after(count: int, piece: int = 512, pause: float = 0.05) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(exchange.body[:count])
        for start in range(count, len(exchange.body), piece):
            await exchange.send(exchange.body[start : start + piece])
            await asyncio.sleep(pause)

    return script


async def wrong_bytes(exchange: Exchange) -> None:
    """Send the right number of bytes, of which the last byte of the content is wrong."""
    body = exchange.body
    if exchange.part[1] < len(exchange.content):
        await honest(exchange)
        return
    await exchange.head()
    await exchange.send(body[:-1] + bytes([body[-1] ^ 0xFF]))


async def wrong_bytes_2(exchange: Exchange) -> None:
    """Like `wrong_bytes`, with another wrong byte."""
    await exchange.head()
    await exchange.send(exchange.body[:-1] + bytes([exchange.body[-1] ^ 0x0F]))


async def wrong_in_the_middle(exchange: Exchange) -> None:
    at = len(exchange.body) // 2
    await exchange.head()
    await exchange.send(exchange.body[:at] + bytes([exchange.body[at] ^ 0xFF]) + exchange.body[at + 1 :])


async def other_content(exchange: Exchange) -> None:
    """Send as many bytes of something else."""
    await exchange.head()
    await exchange.send(bytes(len(exchange.body)))


async def wrong_from_the_start(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(bytes(each ^ 0xFF for each in exchange.body[:1]) + exchange.body[1:])


async def wrong_digest(exchange: Exchange) -> None:
    await exchange.head(docker_content_digest=Digest.of(b"something else"))
    await exchange.send(exchange.body)


async def too_large(exchange: Exchange) -> None:
    """State more bytes than there are, and send them."""
    size = len(exchange.content) + 10
    start, _ = exchange.part
    content_range = f"bytes {start}-{size - 1}/{size}" if exchange.request.range else ""
    await exchange.head(content_length=str(size - start), content_range=content_range)
    await exchange.send(exchange.body + b"x" * 10)


async def more_than_said(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.send(exchange.body + b"HTTP/1.1 200 forged\r\nContent-Length: 9\r\n\r\nforgeries")


async def ignores_range(exchange: Exchange) -> None:
    await exchange.head(200, content_length=str(len(exchange.content)), content_range="")
    await exchange.send(exchange.content)


async def other_range(exchange: Exchange) -> None:
    size = len(exchange.content)
    await exchange.head(206, content_length="10", content_range=f"bytes 0-9/{size}")
    await exchange.send(exchange.content[:10])


async def other_size(exchange: Exchange) -> None:
    """Send the requested range of something larger."""
    start, stop = exchange.part
    await exchange.head(content_range=f"bytes {start}-{stop - 1}/{len(exchange.content) + 1}")
    await exchange.send(exchange.body)


async def unknown_length(exchange: Exchange) -> None:
    await exchange.head(content_length="")
    await exchange.send(exchange.body)
    exchange.close()


async def gzipped(exchange: Exchange) -> None:
    await exchange.head(content_encoding="gzip")
    await exchange.send(exchange.body)


async def chunked(exchange: Exchange) -> None:
    """Send both lengths. By RFC 9112, 6.3, the chunks decide."""
    await exchange.head(transfer_encoding="chunked")
    await exchange.send(f"{len(exchange.body):x}\r\n".encode() + exchange.body + b"\r\n0\r\n\r\n")


async def only_chunked(exchange: Exchange) -> None:
    """Send chunks without a length, like a proxy."""
    await exchange.head(content_length="", transfer_encoding="chunked")
    await exchange.send(f"{len(exchange.body):x}\r\n".encode() + exchange.body + b"\r\n0\r\n\r\n")


async def no_http(exchange: Exchange) -> None:
    await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    exchange.close()


def answers(status: int, **headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head(status, content_length="0", content_range="", **headers)

    return script


def in_turn(*scripts: Script) -> Script:
    """Answer each request with the next script; use the last one for all further requests."""
    remaining = list(scripts)

    async def script(exchange: Exchange) -> None:
        await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(exchange)

    return script


def endless(size: int) -> Script:
    """State `size` bytes, and send without an end."""

    async def script(exchange: Exchange) -> None:
        start, _ = exchange.part
        content_range = f"bytes {start}-{size - 1}/{size}" if exchange.request.range else ""
        await exchange.head(content_length=str(size - start), content_range=content_range)
        while True:
            await exchange.send(b"x" * PIECE)

    return script


def member(name: str, contents: Mapping[Digest, bytes], script: Script, *, late: float = 0) -> Script:
    """Act as a peili host called `name` that claims to have all `contents`; `script` sends them.

    Each answer comes `late` seconds later. The host has no directory, so it is asked itself for each key.
    """

    async def answer(exchange: Exchange) -> None:
        await asyncio.sleep(late)
        if exchange.request.path.startswith("/_router/v1/"):
            await exchange.head(404, content_length="0", Peili_Id=name)
            return
        for digest, content in contents.items():
            if digest in exchange.request.path:
                exchange.content, exchange.digest = content, digest
        if exchange.request.method == "GET":
            await script(exchange)
            return
        size = str(len(exchange.content))
        await exchange.head(200, content_length="0", Peili_Id=name, Peili_Complete="true", Peili_Size=size)

    return answer
