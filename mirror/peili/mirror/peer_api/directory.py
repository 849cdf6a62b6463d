"""The messages of the directory: reports and queries that hosts send to homes, and answers. See docs/protocol.md.

Each message is a JSON object. Functions that parse one raise ValueError, with one line that says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peili.mirror.peer_api.messages import (
    MAX_TOKEN,
    JsonObject,
    encode_message,
    encode_state,
    parse_boolean,
    parse_identity,
    parse_key,
    parse_list,
    parse_number,
    parse_object,
    parse_rate,
    parse_seconds,
    parse_state,
    parse_text,
    parse_version,
)

HELLO_ROUTE = "/v1/hello"
"""The route that shows that a host has a directory. Like the others, it is below the path of the router's routes."""
HOLDINGS_ROUTE = "/v1/holdings"
"""The route for `Holdings`: a host reports its keys to a home."""
HOLDERS_ROUTE = "/v1/holders"
"""The route for `HoldersQuery`: a host asks a home for the holders of a key."""
HELLO_PATH, HOLDINGS_PATH, HOLDERS_PATH = (f"/_router{route}" for route in (HELLO_ROUTE, HOLDINGS_ROUTE, HOLDERS_ROUTE))

MAX_BATCH = 1000
"""How many keys one `Holdings` has at most, those that are gone included."""
MAX_HOMES = 64
"""How many members are homes."""
MAX_HOLDERS = 1000
"""How many holders one message has at most."""
MAX_KNOWN = 8
"""How many versions of lists of hosts one message has at most."""
_MAX_HOSTS = 20_000


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
        upstream_rate: As in `ClaimRequest`.
        doubted: A key that the host fetches from upstream so slowly that another host may be faster. Of all such keys,
            it is the one for which it costs least to try.
    """

    session: str
    sequence: int
    interval: float
    homes: tuple[str, ...] | None
    is_synced: bool
    have: tuple[Holding, ...] = ()
    gone: tuple[str, ...] = ()
    upstream_rate: float | None = None
    doubted: str | None = None

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        message: JsonObject = {
            "session": self.session,
            "sequence": self.sequence,
            "interval": self.interval,
            "synced": self.is_synced,
            "have": [encode_state(each.key, each.size, each.available) for each in self.have],
            "gone": self.gone,
        }
        if self.homes is not None:
            message["homes"] = self.homes
        if self.upstream_rate is not None:
            message["rate"] = self.upstream_rate
        if self.doubted is not None:
            message["doubted"] = self.doubted
        return encode_message(message)

    @classmethod
    def parse(cls, data: bytes) -> Holdings:
        """Parse a message. Raises ValueError."""
        message = parse_object(data)
        homes, rate, doubted = message.get("homes"), message.get("rate"), message.get("doubted")
        have = parse_list(message, "have", _holding, MAX_BATCH)
        gone = parse_list(message, "gone", parse_key, MAX_BATCH)
        if len(have) + len(gone) > MAX_BATCH:
            raise ValueError(f"not within {MAX_BATCH} keys")
        return cls(
            session=parse_text(message.get("session"), "session", MAX_TOKEN),
            sequence=parse_number(message.get("sequence"), "sequence"),
            interval=parse_seconds(message.get("interval"), "interval"),
            homes=None if homes is None else parse_list(message, "homes", parse_identity, MAX_HOMES),
            is_synced=parse_boolean(message, "synced"),
            have=have,
            gone=gone,
            upstream_rate=None if rate is None else parse_rate(rate, "rate"),
            doubted=None if doubted is None else parse_key(doubted),
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
        return encode_message({"key": self.key, "known": self.known})

    @classmethod
    def parse(cls, data: bytes) -> HoldersQuery:
        """Parse a message. Raises ValueError."""
        message = parse_object(data)
        return cls(parse_key(message.get("key")), parse_list(message, "known", parse_version, MAX_KNOWN))


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
        return encode_message(self.to_object())

    def to_object(self) -> JsonObject:
        """Return the message as an object, which may be part of another message."""
        holders = [encode_state(each.id, each.size, each.available) for each in self.holders]
        message: JsonObject = {"holders": holders, "version": self.version}
        if self.hosts is not None:
            message["hosts"] = list(self.hosts)
        return message

    @classmethod
    def parse(cls, data: bytes) -> HoldersAnswer:
        """Parse a message. Raises ValueError."""
        return cls.from_object(parse_object(data))

    @classmethod
    def from_object(cls, message: JsonObject) -> HoldersAnswer:
        """Return the answer in a message. Raises ValueError."""
        hosts = message.get("hosts")
        return cls(
            parse_list(message, "holders", parse_known_holder, MAX_HOLDERS),
            parse_version(message.get("version")),
            None if hosts is None else frozenset(parse_list(message, "hosts", parse_identity, _MAX_HOSTS)),
        )


def _holding(value: Any) -> Holding:
    name, size, available = parse_state(value)
    return Holding(parse_key(name), size, available)


def parse_known_holder(value: Any) -> KnownHolder:
    """Return a holder, from ``[id, size]`` or ``[id, size, available]``. Raises ValueError."""
    name, size, available = parse_state(value)
    return KnownHolder(parse_identity(name), size, available)
