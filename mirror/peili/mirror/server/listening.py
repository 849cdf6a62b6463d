"""Addresses to listen on, the sockets bound to them, and the URLs at which others reach these."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import TypeAlias
from urllib.parse import urlsplit

from peili.mirror.errors import ConfigError, ListenError

Address: TypeAlias = str | socket.socket
"""``host:port``, IPv6 in brackets, port 0 for any that is free; or a bound stream socket, which stays the caller's."""

_BACKLOG = 1024


def bind(where: Address | Sequence[Address], *, any_host: str, reader_timeout: float) -> list[socket.socket]:
    """Sockets that listen on all of `where`; ours to close. An address without a host means `any_host`.

    The kernel drops a connection whose other side takes nothing for `reader_timeout` seconds, also when all that is
    left to send is the end of an answer. Raises ListenError, ConfigError.
    """
    addresses = [where] if isinstance(where, (str, socket.socket)) else list(where)
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(_bound(address, any_host))
            _listen(sockets[-1], reader_timeout)
    except BaseException:
        _close(sockets)
        raise
    return sockets


def shown(bound: socket.socket) -> str:
    """``host:port`` of a socket."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def urls(sockets: Sequence[socket.socket], scheme: str) -> list[str]:
    """How other hosts reach `sockets`: by the address bound, or where that is any, by the one that leads outside."""
    found: list[str] = []
    for bound in sockets:
        host, port = bound.getsockname()[:2]
        address = ip_address(host.partition("%")[0])
        hosts = [host] if not address.is_unspecified else _outside(both=isinstance(address, IPv6Address))
        found += [f"{scheme}://[{each}]:{port}" if ":" in each else f"{scheme}://{each}:{port}" for each in hosts]
    return found


def _listen(sock: socket.socket, reader_timeout: float) -> None:
    """Options are set on the listener: the connections that it accepts inherit them."""
    try:
        # asyncio sets it only on sockets that say they are TCP: without it each small answer behind another one waits
        # for the other side's delayed acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(math.ceil(1000 * reader_timeout), 2**31 - 1)
            )
        sock.listen(_BACKLOG)
    except OSError as error:
        raise ListenError(f"can't listen on {shown(sock)}: {_reason(error)}") from error
    sock.setblocking(False)


def _bound(address: Address, any_host: str) -> socket.socket:
    if isinstance(address, socket.socket):
        if address.family not in {socket.AF_INET, socket.AF_INET6} or address.type != socket.SOCK_STREAM:
            raise ConfigError("listen", f"a TCP socket, not {address}")
        return address.dup()
    host, port = _split(address)
    host = host or any_host
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - asked for: all addresses, on a kernel without IPv6
    try:
        return _bound_to(host, port)
    except OSError as error:
        raise ListenError(f"can't listen on {address}: {_reason(error)}") from error
    except ValueError as error:  # UnicodeError, too: a name that no host can have
        raise ConfigError("listen", f"HOST:PORT with a host's name or address, not {address!a}") from error


def _bound_to(host: str, port: int) -> socket.socket:
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _split(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        port = parts.port
    except ValueError:
        port = None
    else:
        if port is not None and parts.netloc == address and "@" not in address:
            return parts.hostname or "", port
    raise ConfigError("listen", f"HOST:PORT, such as 127.0.0.1:5050 or [::]:5051, not {address!r}")


def _outside(*, both: bool) -> list[str]:
    """Our own addresses on the way out; asking the kernel for the route sends nothing."""
    ways = [(socket.AF_INET, "192.0.2.1"), *([(socket.AF_INET6, "2001:db8::1")] if both else [])]
    found: list[str] = []
    for family, somewhere in ways:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((somewhere, 9))
            except OSError:
                continue  # no route: this host has no address of the family that others could use
            found.append(probe.getsockname()[0])
    return found or ["127.0.0.1"]


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):  # its numbers are no errno
        return str(error.strerror).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()
