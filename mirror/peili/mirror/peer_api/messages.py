"""How the messages between hosts are written and read: JSON objects, whose values are checked one by one.

Functions that parse raise ValueError, with one line that says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from peili.mirror.limits import MIB
from peili.mirror.peer_api.peers import is_identity

_T = TypeVar("_T")
JsonObject: TypeAlias = dict[str, Any]

JSON_HEADERS = {"Content-Type": "application/json"}
MAX_MESSAGE = MIB
"""The largest message in bytes."""
MAX_KEY_LENGTH = 700
"""A longer key is not in the directory. The longest reference that the specs allow is shorter."""
MAX_SECONDS = 3600.0
"""The longest time in a message, for example between two messages of a host."""
MAX_TOKEN = 128
"""The greatest length of the name of a session or version."""
_LARGE = 2**60


def encode_message(message: JsonObject) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode()


def encode_state(name: str, size: int | None, available: int | None) -> Sequence[object]:
    """Return ``[name, size]`` or, if the content is in flight, ``[name, size, available]``."""
    return (name, size) if available is None else (name, size, available)


def parse_object(data: bytes) -> JsonObject:
    """Return the JSON object in a message of at most `MAX_MESSAGE` bytes."""
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"not within {MAX_MESSAGE} bytes")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not a JSON document") from None
    return cast("JsonObject", checked(message, isinstance(message, dict), "not a JSON object"))


def checked(value: _T, is_right: bool, problem: str) -> _T:
    """Return `value` if it is right; otherwise, raise ValueError with `problem`."""
    if not is_right:
        raise ValueError(problem)
    return value


def parse_list(message: JsonObject, name: str, parse: Callable[[Any], _T], most: int) -> tuple[_T, ...]:
    """Return the list `name` of a message, which may be missing."""
    items: Any = message.get(name, [])
    checked(items, _has_length(items, 0, most), f"{name} is not a list of up to {most} items")
    return tuple(parse(each) for each in items)


def _has_length(value: Any, least: int, most: int) -> bool:
    return isinstance(value, list) and least <= len(value) <= most  # pyright: ignore[reportUnknownArgumentType]


def parse_text(value: Any, name: str, most: int) -> str:
    """Return a text of 1 to `most` visible ASCII characters and spaces."""
    is_right = isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable()
    return cast("str", checked(value, is_right, f"{name} is not a text of up to {most} ASCII characters"))


def parse_number(value: Any, name: str) -> int:
    """Return a whole number that is not negative."""
    is_right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGE
    return cast("int", checked(value, is_right, f"{name} is not a whole number from 0 on"))


def parse_boolean(message: JsonObject, name: str) -> bool:
    """Return the value `name` of a message, which is true or false."""
    value = message.get(name)
    return cast("bool", checked(value, isinstance(value, bool), f"{name} is not true or false"))


def parse_seconds(value: Any, name: str) -> float:
    """Return a time in seconds: more than 0, at most `MAX_SECONDS`."""
    is_right = _is_real(value) and 0 < value <= MAX_SECONDS
    return float(checked(value, is_right, f"{name} is not a number of seconds up to {MAX_SECONDS:g}"))


def parse_rate(value: Any, name: str) -> float:
    """Return a number of bytes per second that is not negative."""
    is_right = _is_real(value) and 0 <= value < _LARGE
    return float(checked(value, is_right, f"{name} is not a number of bytes per second"))


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_key(value: Any) -> str:
    """Return a key, which may be a digest or a reference."""
    return parse_text(value, "a key", MAX_KEY_LENGTH)


def parse_version(value: Any) -> str:
    """Return the version of a list."""
    return parse_text(value, "a version", MAX_TOKEN)


def parse_identity(value: Any) -> str:
    """Return the id of a host."""
    is_right = isinstance(value, str) and is_identity(value)
    return cast("str", checked(value, is_right, "an id is not a text of up to 255 visible ASCII characters"))


def parse_state(value: Any) -> tuple[Any, int | None, int | None]:
    """Return the parts of ``[name, size]`` or ``[name, size, available]``."""
    name, size, *rest = checked(value, _has_length(value, 2, 3), "an item is not a list of two or three values")
    return (
        name,
        None if size is None else parse_number(size, "a size"),
        parse_number(rest[0], "a number of bytes") if rest else None,
    )
