"""Checks what plug-ins return. They are third-party code, so their annotations may be wrong, or missing.

Each check raises TypeError, whose text names the method and says what would be right.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")


def check(value: object, kind: type[Any], said: str) -> None:
    """Check that `value` is an instance of `kind`.

    Args:
        value: The value.
        kind: The class.
        said: The beginning of the error's text, such as ``MyStore.open returned``.

    Raises:
        TypeError: The value is not an instance.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{said} {value!r}, which is no {kind.__name__}")


async def answer(returned: Awaitable[_T], kind: type[Any], method: str, *, optional: bool = False) -> _T:
    """Return what a coroutine function of a plug-in returns.

    Args:
        returned: What the call has returned.
        kind: The class of what is to be returned in the end.
        method: The method, for the error.
        optional: Whether it may also be None.

    Raises:
        TypeError: It is not a coroutine function, or the value is not an instance of `kind`.
    """
    if not inspect.isawaitable(returned):
        raise TypeError(f"{method} returned {returned!r} at once; it must be a coroutine function (async def)")
    value = await returned
    if value is not None or not optional:
        check(value, kind, f"{method} returned")
    return value


def plain(returned: _T, method: str, right: str = "a plain function (def)") -> _T:
    """Return what a method of a plug-in has returned that is no coroutine function.

    Args:
        returned: What the call has returned.
        method: The method, for the error.
        right: What it must be, for the error.

    Raises:
        TypeError: It is a coroutine function.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError(f"{method} is a coroutine function; it must be {right}")
    return returned
