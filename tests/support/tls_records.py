"""A client of TLS 1.3 that sends records of its own making, such as half of a message of TLS itself (RFC 8446)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HANDSHAKE, APPLICATION_DATA = 22, 23
"""Types of content."""
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
"""A message that says that the sender uses new keys from now on."""
KEY_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
"""The same, and the other side shall do so, too, and say so."""
_SUITE = "TLS_AES_256_GCM_SHA384"


class RecordClient:
    """The client's side of a connection after its handshake, on a non-blocking socket. It reads nothing.

    Args:
        connected: The socket.
        secret: The traffic secret of the client.
    """

    def __init__(self, connected: socket.socket, secret: bytes) -> None:
        self._socket = connected
        self._use(secret)

    @classmethod
    async def connect(cls, connected: socket.socket, context: ssl.SSLContext, name: str, keys: Path) -> RecordClient:
        """Make the handshake. `context` is changed; it writes its keys into the file `keys`."""
        loop, received, to_send = asyncio.get_running_loop(), ssl.MemoryBIO(), ssl.MemoryBIO()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(keys)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each record arrives at once
        secured = context.wrap_bio(received, to_send, server_hostname=name)
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(connected, to_send.read())
                received.write(await loop.sock_recv(connected, 1 << 16))
        await loop.sock_sendall(connected, to_send.read())
        cipher = secured.cipher()
        assert cipher is not None
        assert cipher[0] == _SUITE
        return cls(connected, _client_secret(keys))

    async def send(self, content: bytes, kind: int = APPLICATION_DATA) -> None:
        """Send one record."""
        nonce = (self._sent ^ int.from_bytes(self._iv)).to_bytes(12)
        self._sent += 1
        header = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2)
        sealed = self._cipher.encrypt(nonce, content + bytes([kind]), header)
        await asyncio.get_running_loop().sock_sendall(self._socket, header + sealed)

    def use_new_keys(self) -> None:
        """Use the keys that follow a `KEY_UPDATE`."""
        self._use(_derived(self._secret, b"traffic upd", 48))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher, self._iv = AESGCM(_derived(secret, b"key", 32)), _derived(secret, b"iv", 12)
        self._sent = 0


def _client_secret(keys: Path) -> bytes:
    lines = [line.split() for line in keys.read_text().splitlines()]
    [secret] = [line[2] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0"]
    return bytes.fromhex(secret)


def _derived(secret: bytes, label: bytes, size: int) -> bytes:
    """Return HKDF-Expand-Label without a context."""
    name = b"tls13 " + label
    return HKDFExpand(SHA384(), size, size.to_bytes(2) + bytes([len(name)]) + name + b"\0").derive(secret)
