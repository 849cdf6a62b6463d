"""A router whose members are written in the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import Any, Self, TypeGuard, cast

from typing_extensions import override

from peili.mirror import ConfigError, MembershipRouter, Peer

_EXAMPLE = '"http://10.0.0.3:5051"'
_OPTIONS = ("peers",)
_FIELDS = ("id", "labels", "tls_name", "url", "urls")


class StaticRouter(MembershipRouter):
    """The members are `peers`, always. This host may be among them."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._members = tuple(peers)

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """``peers`` is a list. Each entry is a URL, a list of URLs of one peer, or a table with ``url`` or ``urls``
        and, if need be, ``id`` (by default the first URL), ``tls_name`` and ``labels``.
        """
        _refuse_unknown("", config, _OPTIONS)
        entries = config.get("peers")
        if not _is_list(entries):
            raise ConfigError("peers", f"a list of URLs, as in [{_EXAMPLE}]{_instead(entries)}")
        peers = [_peer(f"peers[{place}]", entry) for place, entry in enumerate(entries)]
        _refuse_twins(peers)
        return cls(peers)

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        yield self._members
        await asyncio.get_running_loop().create_future()  # they never change


def _peer(key: str, entry: Any) -> Peer:
    if isinstance(entry, dict):
        return _from_table(key, cast("dict[str, Any]", entry))
    urls = _urls(key, entry)
    return Peer(urls[0], urls)


def _from_table(key: str, table: Mapping[str, Any]) -> Peer:
    _refuse_unknown(f"{key}.", table, _FIELDS)
    if ("url" in table) == ("urls" in table):
        raise ConfigError(key, f"either url or urls, as in {{url = {_EXAMPLE}}}")
    name = "url" if "url" in table else "urls"
    value = table[name]
    if _is_list(value) is (name == "url"):
        kind = "one URL" if name == "url" else "a list of URLs"
        raise ConfigError(f"{key}.{name}", f"{kind}{_instead(value)}")
    urls = _urls(f"{key}.{name}", value)
    tls_name = _certified(f"{key}.tls_name", table["tls_name"]) if "tls_name" in table else None
    identity = _text(f"{key}.id", table["id"]) if "id" in table else urls[0]
    return Peer(identity, urls, tls_name, _labels(f"{key}.labels", table.get("labels", {})))


def _urls(key: str, value: Any) -> tuple[str, ...]:
    """The URLs that `value`, one or a list of them, stands for; in the form that `Peer` keeps."""
    if _is_list(value) and value:
        return tuple(_url(f"{key}[{place}]", each) for place, each in enumerate(value))
    return (_url(key, value),)


def _url(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(key, f"a URL such as {_EXAMPLE}{_instead(value)}")
    try:
        return Peer("unnamed", (value,)).urls[0]
    except ValueError as error:
        raise ConfigError(key, str(error)) from error


def _certified(key: str, value: Any) -> str:
    name = _text(key, value)
    try:
        Peer("unnamed", (), name)
    except ValueError as error:
        raise ConfigError(key, str(error)) from error
    return name


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(key, f"a text that is not empty{_instead(value)}")
    return value


def _labels(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(key, f'a table of texts, as in {{zone = "a"}}{_instead(value)}')
    return {name: _text(f"{key}.{name}", each) for name, each in cast("dict[str, Any]", value).items()}


def _refuse_unknown(prefix: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    for name in table:
        if name not in known:
            raise ConfigError(f"{prefix}{name}", f"unknown option; there are: {', '.join(known)}")


def _refuse_twins(peers: Iterable[Peer]) -> None:
    places: dict[str, int] = {}
    for place, peer in enumerate(peers):
        first = places.setdefault(peer.id, place)
        if first != place:
            raise ConfigError(f"peers[{place}]", f"a peer of its own; {peer.id!r} is peers[{first}] already")


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _instead(value: Any) -> str:
    return "" if value is None else f", not {value!r}"
