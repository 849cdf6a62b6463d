"""A router whose members are listed in its options."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import Any, Self, TypeGuard

from typing_extensions import override

from peili.mirror import ConfigError, MembershipRouter, Options, Peer

_EXAMPLE = '"http://10.0.0.3:5051"'
_URL = f"a URL such as {_EXAMPLE}"


class StaticRouter(MembershipRouter):
    """A router whose members never change.

    Args:
        peers: The members. This host may be one of them.

    Attributes:
        listed: The members.
    """

    def __init__(self, peers: Iterable[Peer]) -> None:
        self.listed = tuple(peers)

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from the option ``peers``, a list.

        Each entry of the list is a URL, a list of URLs of one peer, or a table. A table has ``url`` or ``urls``, and
        optionally ``id`` (default: the first URL), ``tls_name`` and ``labels``.
        """
        return cls(read_peers(config))

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        yield self.listed
        await asyncio.get_running_loop().create_future()  # never done, because the members never change


def read_peers(config: Mapping[str, Any]) -> list[Peer]:
    """Return the peers in the option ``peers``; see `StaticRouter.from_config`. Raises ConfigError."""
    options = Options(config, "peers")
    entries = options.sequence("peers", f"a list of URLs, as in [{_EXAMPLE}]", empty=True)
    peers = [_read_peer(options, f"peers[{index}]", entry) for index, entry in enumerate(entries)]
    indexes: dict[str, int] = {}
    for index, peer in enumerate(peers):
        first = indexes.setdefault(peer.id, index)
        if first != index:
            expected = f"a peer with another id; {peer.id!r} is the id of peers[{first}]"
            raise ConfigError(f"peers[{index}]", expected)
    return peers


def _read_peer(options: Options, place: str, entry: Any) -> Peer:
    if isinstance(entry, str) or _is_list(entry):
        urls = _read_urls(place, entry)
        return Peer(urls[0], urls)
    table = options.table(place, entry, "id", "labels", "tls_name", "url", "urls", expected=_URL)
    if ("url" in table) == ("urls" in table):
        raise ConfigError(place, f"either url or urls, as in {{url = {_EXAMPLE}}}")
    if "url" in table:
        urls = _read_urls(f"{place}.url", table.text("url", expected="one URL"))
    else:
        urls = _read_urls(f"{place}.urls", list(table.sequence("urls", "a list of URLs", empty=True)))
    tls_name = table.text("tls_name", None)
    if tls_name is not None:
        _check_peer(f"{place}.tls_name", (), tls_name)
    return Peer(table.text("id", urls[0]), urls, tls_name, table.mapping("labels", {}))


def _read_urls(place: str, value: Any) -> tuple[str, ...]:
    """Return the URLs in `value`, which is one URL or a list of them, normalized as in `Peer`."""
    if _is_list(value) and value:
        return tuple(_read_url(f"{place}[{index}]", each) for index, each in enumerate(value))
    return (_read_url(place, value),)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _read_url(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(place, f"{_URL}, not {value!r}")
    return _check_peer(place, (value,)).urls[0]


def _check_peer(place: str, urls: tuple[str, ...], tls_name: str | None = None) -> Peer:
    try:
        return Peer("unnamed", urls, tls_name)
    except ValueError as error:
        raise ConfigError(place, str(error)) from error
