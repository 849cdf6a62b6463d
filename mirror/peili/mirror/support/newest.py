"""Tables that forget their oldest entry when they are full."""

from __future__ import annotations

from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


def put_newest(table: dict[_K, _V], key: _K, value: _V, most: int) -> bool:
    """Set an entry as the newest one. If there are more than `most` then, remove the oldest one.

    Returns:
        Whether an entry was removed.
    """
    table.pop(key, None)
    table[key] = value
    is_full = len(table) > most
    if is_full:
        del table[next(iter(table))]
    return is_full
