"""The messages of the directory: reports and queries that hosts send to homes, and answers. See docs/protocol.md.

Each message is a JSON object. Functions that parse one raise ValueError, with one line that says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from peili.mirror.limits import MIB
from peili.mirror.peer_api.peers import is_identity

_T = TypeVar("_T")
_Object: TypeAlias = dict[str, Any]

HELLO_ROUTE = "/v1/hello"
"""The route that shows that a host has a directory. Like the others, it is below the path of the router's routes."""
HOLDINGS_ROUTE = "/v1/holdings"
"""The route for `Holdings`: a host reports its keys to a home."""
HOLDERS_ROUTE = "/v1/holders"
"""The route for `HoldersQuery`: a host asks a home for the holders of a key."""
HELLO_PATH, HOLDINGS_PATH, HOLDERS_PATH = (f"/_router{route}" for route in (HELLO_ROUTE, HOLDINGS_ROUTE, HOLDERS_ROUTE))
JSON_HEADERS = {"Content-Type": "application/json"}

MAX_MESSAGE = MIB
"""The largest message in bytes."""
MAX_BATCH = 1000
"""How many keys one `Holdings` has at most, those that are gone included."""
MAX_KEY_LENGTH = 700
"""A longer key is not in the directory. The longest reference that the specs allow is shorter."""
MAX_HOMES = 64
"""How many members are homes."""
MAX_INTERVAL = 3600.0
"""The longest time in seconds between two messages of a host that a home accepts."""
_MAX_KNOWN = 8
_MAX_TOKEN = 128
_MAX_HOSTS = 20_000
_MAX_HOLDERS = 1000


@dataclass(frozen=True, slots=True)
class Holding:
    """One key that a host has.

    Attributes:
        key: The key as text.
        size: The size of the whole content in bytes, if it is known.
        available: How many bytes from the start have arrived, if the content is in flight; None if it is complete.
    """

    key: str
    size: int | None = None
    available: int | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a host reports to a home about itself. The messages of one session are numbered from 0.

    Attributes:
        session: Names the session. A new one begins with the number 0; the home then forgets the one before.
        sequence: The number of the message. A message may be repeated.
        interval: The next message follows after at most this many seconds.
        homes: All homes among which the host divides its keys; None if they are those of the message before.
        is_synced: Whether the home now knows every key that the host has and for which the home is one of the homes.
        have: Keys that the host has. An entry replaces the earlier one of its key.
        gone: Keys that the host no longer has, or no longer reports to this home.
    """

    session: str
    sequence: int
    interval: float
    homes: tuple[str, ...] | None
    is_synced: bool
    have: tuple[Holding, ...] = ()
    gone: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        message: _Object = {
            "session": self.session,
            "sequence": self.sequence,
            "interval": self.interval,
            "synced": self.is_synced,
            "have": [_encode_state(each.key, each.size, each.available) for each in self.have],
            "gone": self.gone,
        }
        if self.homes is not None:
            message["homes"] = self.homes
        return _encode(message)

    @classmethod
    def parse(cls, data: bytes) -> Holdings:
        """Parse a message. Raises ValueError."""
        message = _parse_object(data)
        homes = message.get("homes")
        have = _list(message, "have", _holding, MAX_BATCH)
        gone = _list(message, "gone", _key, MAX_BATCH)
        if len(have) + len(gone) > MAX_BATCH:
            raise ValueError(f"not within {MAX_BATCH} keys")
        return cls(
            session=_text(message.get("session"), "session", _MAX_TOKEN),
            sequence=_number(message.get("sequence"), "sequence"),
            interval=_interval(message.get("interval")),
            homes=None if homes is None else _list(message, "homes", _identity, MAX_HOMES),
            is_synced=_boolean(message, "synced"),
            have=have,
            gone=gone,
        )


@dataclass(frozen=True, slots=True)
class HoldersQuery:
    """The query of a host for the holders of a key.

    Attributes:
        key: The key as text.
        known: The versions of `HoldersAnswer.hosts` that the host knows from earlier answers of the home.
    """

    key: str
    known: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        return _encode({"key": self.key, "known": self.known})

    @classmethod
    def parse(cls, data: bytes) -> HoldersQuery:
        """Parse a message. Raises ValueError."""
        message = _parse_object(data)
        return cls(_key(message.get("key")), _list(message, "known", _version, _MAX_KNOWN))


@dataclass(frozen=True, slots=True)
class KnownHolder:
    """A host that has reported the key to the home.

    Attributes:
        id: The id of the host.
        size: As in `Holding`.
        available: As in `Holding`.
    """

    id: str
    size: int | None = None
    available: int | None = None


@dataclass(frozen=True, slots=True)
class HoldersAnswer:
    """What a home knows about a key.

    Attributes:
        holders: Hosts that have the key. A home does not keep more than it needs.
        version: Names the value of `hosts`.
        hosts: The ids of all hosts that would be in `holders` if they had the key, because the home is synced with
            them and is a home of this key for them. None if the client knows this version.
    """

    holders: tuple[KnownHolder, ...]
    version: str
    hosts: frozenset[str] | None

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        holders = [_encode_state(each.id, each.size, each.available) for each in self.holders]
        message: _Object = {"holders": holders, "version": self.version}
        if self.hosts is not None:
            message["hosts"] = list(self.hosts)
        return _encode(message)

    @classmethod
    def parse(cls, data: bytes) -> HoldersAnswer:
        """Parse a message. Raises ValueError."""
        message = _parse_object(data)
        hosts = message.get("hosts")
        return cls(
            _list(message, "holders", _known_holder, _MAX_HOLDERS),
            _version(message.get("version")),
            None if hosts is None else frozenset(_list(message, "hosts", _identity, _MAX_HOSTS)),
        )


def _encode(message: _Object) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _encode_state(name: str, size: int | None, available: int | None) -> Sequence[object]:
    return (name, size) if available is None else (name, size, available)


def _parse_object(data: bytes) -> _Object:
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"not within {MAX_MESSAGE} bytes")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not a JSON document") from None
    return cast("_Object", _checked(message, isinstance(message, dict), "not a JSON object"))


def _checked(value: _T, is_right: bool, problem: str) -> _T:
    if not is_right:
        raise ValueError(problem)
    return value


def _list(message: _Object, name: str, parse: Callable[[Any], _T], most: int) -> tuple[_T, ...]:
    """Return the list `name` of a message, which may be missing."""
    items: Any = message.get(name, [])
    _checked(items, _has_length(items, 0, most), f"{name} is not a list of up to {most} items")
    return tuple(parse(each) for each in items)


def _has_length(value: Any, least: int, most: int) -> bool:
    return isinstance(value, list) and least <= len(value) <= most  # pyright: ignore[reportUnknownArgumentType]


def _text(value: Any, name: str, most: int) -> str:
    is_right = isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable()
    return cast("str", _checked(value, is_right, f"{name} is not a text of up to {most} ASCII characters"))


def _number(value: Any, name: str) -> int:
    is_right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60
    return cast("int", _checked(value, is_right, f"{name} is not a whole number from 0 on"))


def _boolean(message: _Object, name: str) -> bool:
    value = message.get(name)
    return cast("bool", _checked(value, isinstance(value, bool), f"{name} is not true or false"))


def _interval(value: Any) -> float:
    is_right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_INTERVAL
    return float(_checked(value, is_right, f"interval is not a number of seconds up to {MAX_INTERVAL:g}"))


def _key(value: Any) -> str:
    return _text(value, "a key", MAX_KEY_LENGTH)


def _version(value: Any) -> str:
    return _text(value, "a version", _MAX_TOKEN)


def _identity(value: Any) -> str:
    is_right = isinstance(value, str) and is_identity(value)
    return cast("str", _checked(value, is_right, "an id is not a text of up to 255 visible ASCII characters"))


def _holding(value: Any) -> Holding:
    name, size, available = _state(value)
    return Holding(_key(name), size, available)


def _known_holder(value: Any) -> KnownHolder:
    name, size, available = _state(value)
    return KnownHolder(_identity(name), size, available)


def _state(value: Any) -> tuple[Any, int | None, int | None]:
    """Return the parts of ``[name, size]`` or ``[name, size, available]``."""
    name, size, *rest = _checked(value, _has_length(value, 2, 3), "an item is not a list of two or three values")
    return (
        name,
        None if size is None else _number(size, "a size"),
        _number(rest[0], "a number of bytes") if rest else None,
    )
