"""Connects to a peer: looks up its addresses, tries them, and checks its certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field

from peili.mirror.client.dns import Addresses, AddressResolver, SocketAddress
from peili.mirror.client.transport import TcpTransport, TlsTransport, Transport
from peili.mirror.peer_api.addresses import AddressKinds
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.peer_tls import PeerTLS


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect to: the part of a URL before its path.

    Attributes:
        is_secure: Whether to use TLS.
        tls_name: The name that the certificate must show. If it is empty, only `PeerTLS.check_server` checks the names.
        dialled: The kinds of addresses that may be dialled.
    """

    is_secure: bool
    host: str
    port: int
    tls_name: str
    dialled: AddressKinds = field(default=AddressKinds.ANY, hash=False)  # the hash of an enum is slow


async def connect(
    origin: Origin, tls: ssl.SSLContext | PeerTLS | None, timeout: float, resolver: AddressResolver
) -> Transport:
    """Connect to `origin`, over TLS if `tls` is given.

    Args:
        origin: Where to connect to.
        tls: The TLS context, or the mutual TLS, whose checks are made too.
        timeout: Seconds for the lookup of the host name, the connection and the TLS handshake together.
        resolver: Looks up the host name.

    Raises:
        OSError: The connection or the TLS handshake failed. TimeoutError is one.
        UnicodeError: The host of `origin` is not a host name.
    """
    async with Deadline(timeout):
        addresses = _allowed(origin, await resolver.addresses(origin.host, origin.port))
        tcp_socket = await _connect_any(addresses, timeout)
        if tls is None:
            return TcpTransport(tcp_socket)
        try:
            context = tls.contexts().client if isinstance(tls, PeerTLS) else tls
            transport = await TlsTransport.start(tcp_socket, context, origin.tls_name or origin.host)
        except BaseException:
            tcp_socket.close()
            raise
        try:
            if isinstance(tls, PeerTLS):
                names = transport.certificate_names()
                tls.check_server(names, origin.tls_name)
                transport.identity = tls.identity_of(names)
        except BaseException:
            transport.close()
            raise
        return transport


def _allowed(origin: Origin, addresses: Addresses) -> Addresses:
    """Return those of `addresses` that may be dialled. Raises OSError if there are none."""
    if origin.dialled is AddressKinds.ANY:
        return addresses
    allowed = [each for each in addresses if AddressKinds.of(str(each[1][0])) & origin.dialled]
    if addresses and not allowed:
        raise OSError(f"{addresses[0][1][0]} is not dialled, because it is not an address of another host")
    return allowed


async def _connect_any(addresses: Addresses, timeout: float) -> socket.socket:
    """Return a socket that is connected to the first of `addresses` that accepts. Each has its share of `timeout`."""
    problem: OSError = OSError("the host has no address")
    for family, address in addresses:
        try:
            async with Deadline(timeout / len(addresses)):
                return await _connect(family, address)
        except OSError as error:
            problem = error
    raise problem


async def _connect(family: int, address: SocketAddress) -> socket.socket:
    tcp_socket = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp_socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(tcp_socket, address)
    except BaseException:
        tcp_socket.close()
        raise
    return tcp_socket
