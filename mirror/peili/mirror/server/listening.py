"""Binds the addresses that a door listens on, and finds the URLs at which other hosts reach them."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import TypeAlias
from urllib.parse import urlsplit

import ifaddr

from peili.mirror.errors import ConfigError, ListenError

Address: TypeAlias = str | socket.socket
"""``host:port`` (IPv6 in brackets, port 0 for any free port), or a bound TCP socket, which the caller keeps."""

_BACKLOG = 1024
_KERNEL_PATIENCE = 2
_MAX_ADDRESSES = 16
"""The most addresses of a host that other hosts are told."""


def bind(addresses: Address | Sequence[Address], *, any_host: str, reader_timeout: float) -> list[socket.socket]:
    """Return sockets that listen on `addresses`. The caller closes them.

    Args:
        addresses: One address or several.
        any_host: The host of an address that has none.
        reader_timeout: The kernel drops a connection if its client acknowledges nothing for twice so many seconds, even
            if only the end of a response remains to be sent. The door itself cuts such a client off after
            `reader_timeout`, and counts it. If the kernel were first, it would look like a disconnect.

    Raises:
        ListenError: An address cannot be listened on.
        ConfigError: An address is malformed.
    """
    all_addresses = [addresses] if isinstance(addresses, (str, socket.socket)) else list(addresses)
    sockets: list[socket.socket] = []
    try:
        for address in all_addresses:
            sockets.append(_bind(address, any_host))
            _listen(sockets[-1], reader_timeout)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def address_of(bound: socket.socket) -> str:
    """Return the address of a socket as ``host:port``."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def urls_of(sockets: Sequence[socket.socket], scheme: str) -> list[str]:
    """Return the URLs at which other hosts reach `sockets`.

    A socket that is bound to all addresses is reached at this host's address on its default route. Without a default
    route, it is reached at each address of its interfaces, and on loopback only if there is no other one.

    Args:
        sockets: Bound TCP sockets.
        scheme: ``http`` or ``https``.
    """
    urls: list[str] = []
    for bound in sockets:
        host, port = bound.getsockname()[:2]
        address = ip_address(host.partition("%")[0])
        hosts = [host] if not address.is_unspecified else _own_addresses(both=isinstance(address, IPv6Address))
        urls += [f"{scheme}://[{each}]:{port}" if ":" in each else f"{scheme}://{each}:{port}" for each in hosts]
    return urls


def _listen(sock: socket.socket, reader_timeout: float) -> None:
    """Start to listen. The accepted connections inherit the options of the listening socket."""
    try:
        # asyncio sets this only on sockets whose protocol number is TCP. Without it, a small response behind another
        # one waits for the client's delayed acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            milliseconds = min(math.ceil(_KERNEL_PATIENCE * 1000 * reader_timeout), 2**31 - 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        sock.listen(_BACKLOG)
    except OSError as error:
        raise ListenError(f"can't listen on {address_of(sock)}: {_reason(error)}") from error
    sock.setblocking(False)


def _bind(address: Address, any_host: str) -> socket.socket:
    if isinstance(address, socket.socket):
        if address.family not in {socket.AF_INET, socket.AF_INET6} or address.type != socket.SOCK_STREAM:
            raise ConfigError("listen", f"a TCP socket, not {address}")
        return address.dup()
    host, port = _split(address)
    host = host or any_host
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - the user wants all addresses, and the kernel has no IPv6
    try:
        return _bind_to(host, port)
    except OSError as error:
        raise ListenError(f"can't listen on {address}: {_reason(error)}") from error
    except ValueError as error:  # also UnicodeError: not a host name
        raise ConfigError("listen", f"HOST:PORT with a host's name or address, not {address!a}") from error


def _bind_to(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _split(address: str) -> tuple[str, int]:
    """Return the host, which may be empty, and the port. Raises ConfigError."""
    try:
        parts = urlsplit(f"//{address}")
        port = parts.port
    except ValueError:
        port = None
    else:
        if port is not None and parts.netloc == address and "@" not in address:
            return parts.hostname or "", port
    raise ConfigError("listen", f"HOST:PORT, such as 127.0.0.1:5050 or [::]:5051, not {address!r}")


def _own_addresses(*, both: bool) -> list[str]:
    """Return the addresses of this host that other hosts can use: of IPv4, and of IPv6, too, if `both`."""
    return _outgoing_addresses(both=both) or _interface_addresses(both=both) or ["127.0.0.1"]


def _outgoing_addresses(*, both: bool) -> list[str]:
    """Return this host's addresses on its default routes. Connecting a UDP socket sends nothing."""
    destinations = [(socket.AF_INET, "192.0.2.1"), *([(socket.AF_INET6, "2001:db8::1")] if both else [])]
    found: list[str] = []
    for family, destination in destinations:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((destination, 9))
            except OSError:
                continue  # no route: this host has no address of this family that other hosts could use
            found.append(probe.getsockname()[0])
    return found


def _interface_addresses(*, both: bool) -> list[str]:
    """Return the addresses of this host's interfaces, without loopback. Link-local ones come last."""
    texts = (each.ip if isinstance(each.ip, str) else each.ip[0] for each in _interface_ips())
    found = {ip_address(text.partition("%")[0]) for text in texts}
    others = [each for each in found if not each.is_loopback]
    usable = [each for each in others if each.version == 4 or (both and not each.is_link_local)]
    in_order = sorted(usable, key=lambda each: (each.is_link_local, each.version, int(each)))
    return [str(each) for each in in_order[:_MAX_ADDRESSES]]


def _interface_ips() -> list[ifaddr.IP]:
    try:
        return [each for adapter in ifaddr.get_adapters() for each in adapter.ips]
    except OSError:
        return []


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):  # its number is not an errno
        return str(error.strerror).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)
