"""Keeps requests to registries that nobody has configured away from loopback, link-local and metadata addresses.

Every process that may use the local door can name a registry. Without this check, it could let peili send requests to
services that are only for this host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from peili.mirror.peer_api.addresses import AddressKinds
from peili.mirror.upstream.exchanges import NotDialled

Trace: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[None]]
"""What httpx calls at each step of a request, with the name of the step and what is known about it."""
_LOCALHOST = "localhost"


def check_host(host: str) -> None:
    """Check an address, or that a name is not one of this host itself. A proxy gets it as it is, too.

    Raises:
        NotDialled: It is not of another host.
    """
    name = host.lower().rstrip(".")
    if name == _LOCALHOST or name.endswith(f".{_LOCALHOST}"):
        raise NotDialled(_text(host))
    _check_address(host, host)


def connection_check(host: str) -> Trace:
    """Return a trace that closes a new connection before its first byte, if its address is not one of another host.

    The trace raises `NotDialled`. A connection to a proxy is not checked: the proxy decides what it connects to.

    Args:
        host: The host of the URL, as it is sent in a request.
    """
    dialled = ""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal dialled
        if event == "connection.connect_tcp.started":
            dialled = info["host"]
        elif event == "connection.connect_tcp.complete" and dialled == host:
            stream = info["return_value"]
            try:
                _check_address(stream.get_extra_info("server_addr")[0], host)
            except NotDialled:
                await stream.aclose()
                raise

    return trace


def _check_address(address: str, host: str) -> None:
    try:
        kind = AddressKinds.of(address)
    except ValueError:
        return  # a name, which is checked when it is connected to
    if kind not in AddressKinds.ROUTED:
        raise NotDialled(_text(host))


def _text(host: str) -> str:
    return f"nobody has configured this registry, and {host} is not at an address of another host"
