"""A peer that does not accept the certificate of this host says so after the handshake, or only ends the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.certificates import Authority

from peili.mirror import Limits, Peer, PeerCertificates, PeerClient, PeerUnavailable
from peili.mirror.client.connecting import Origin
from peili.mirror.client.connection import ServerDisconnected
from peili.mirror.client.pool import ConnectionPool

pytestmark = pytest.mark.anyio

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: peer\r\n\r\n"
REFUSED = "it may not accept the certificate of this host"
RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which `close` resets a connection."""


class RefusingPeer:
    """A server that refuses the certificate of each client, and resets the connection.

    Args:
        context: The TLS context of the server.
        says_why: Whether it sends the alert of TLS before.
    """

    def __init__(self, context: ssl.SSLContext, *, says_why: bool) -> None:
        self._context = context
        self._says_why = says_why
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.resumed = asyncio.Event()  # while it is not set, the answer to the certificate is withheld
        self.has_reset = asyncio.Event()

    async def run(self) -> None:
        """Refuse clients until cancelled."""
        loop = asyncio.get_running_loop()
        with self._listener:
            while True:
                accepted, _ = await loop.sock_accept(self._listener)
                with accepted:
                    await self._refuse(accepted)
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.has_reset.set()

    async def _refuse(self, accepted: socket.socket) -> None:
        loop, received, answers = asyncio.get_running_loop(), ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = self._context.wrap_bio(received, answers, server_side=True)
        try:
            while True:
                try:
                    secured.do_handshake()
                except ssl.SSLWantReadError:
                    await loop.sock_sendall(accepted, answers.read())
                    received.write(await loop.sock_recv(accepted, 1 << 16))
        except ssl.SSLCertVerificationError:
            await self.resumed.wait()
            if self._says_why:
                await loop.sock_sendall(accepted, answers.read())


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, PeerCertificates]:
    """The TLS of a server, and that of a host that trusts it, but has a certificate of another authority."""
    authority = Authority(tmp_path / "authority")
    server = authority.issue(tmp_path / "server", "127.0.0.1")
    other = Authority(tmp_path / "another").issue(tmp_path / "other", "127.0.0.1")
    return server.server_context(), PeerCertificates(server.ca, other.cert, other.key)


@asynccontextmanager
async def refusing(context: ssl.SSLContext, *, says_why: bool) -> AsyncGenerator[RefusingPeer]:
    peer = RefusingPeer(context, says_why=says_why)
    running = asyncio.create_task(peer.run())
    async with asyncio.timeout(60):
        try:
            yield peer
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.mark.parametrize("is_sent_first", [True, False], ids=["the request first", "the refusal first"])
@pytest.mark.parametrize("says_why", [True, False], ids=["an alert", "a bare reset"])
async def test_the_error_says_that_the_certificate_may_be_refused(
    says_why: bool, is_sent_first: bool, tls: tuple[ssl.SSLContext, PeerCertificates]
) -> None:
    context, own = tls
    pool = ConnectionPool(own)
    async with refusing(context, says_why=says_why) as peer:
        connection = await pool.connect(Origin(True, "127.0.0.1", peer.port, "127.0.0.1"), 60)

        async def request() -> object:
            if not is_sent_first:
                await peer.has_reset.wait()
            return await connection.request("GET", REQUEST)

        asking = asyncio.create_task(request())
        await asyncio.sleep(0)  # the request is sent at once
        peer.resumed.set()
        with pytest.raises(ssl.SSLError if says_why else ServerDisconnected, match="ALERT" if says_why else REFUSED):
            await asking
        pool.close()


async def test_the_error_for_the_log_and_the_doctor_names_the_peer_and_the_reason(
    tls: tuple[ssl.SSLContext, PeerCertificates],
) -> None:
    context, own = tls
    async with refusing(context, says_why=False) as peer, PeerClient(Limits(connect_timeout=60), tls=own) as client:
        peer.resumed.set()
        with pytest.raises(PeerUnavailable, match=f"^peer two: .*; {REFUSED}$"):
            await client.head(Peer("two", (f"https://127.0.0.1:{peer.port}",)), "/v2/", timeout=60)
