"""Calls a plug-in in bounded time, and translates errors that its interface does not allow.

A CancelledError is passed on only if the caller was cancelled. A plug-in may raise one itself; see `is_own_failure`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from peili.mirror.errors import NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import is_own_failure

_T = TypeVar("_T")


class CallFailed(Unavailable):
    """A plug-in did not return in time, or raised an error that its interface does not allow. It is logged already."""


async def call(
    function: Callable[[], Awaitable[_T]],
    context: Context,
    name: str,
    *,
    about: object = None,
    limit: str = "first_byte_timeout",
    seconds: float | None = None,
    allowed: tuple[type[Exception], ...] = (),
) -> _T:
    """Call `function` of a plug-in and return what it returns.

    Args:
        function: The call.
        context: Its limits bound the call, its log receives what goes wrong.
        name: What is called, for the log and for the error; for example ``the router``.
        about: What the call is for, for the log; for example a digest.
        limit: The name of the limit that bounds the call. It is counted when the call takes too long.
        seconds: How long the call may take, if that is not the value of `limit`.
        allowed: The errors that the plug-in may raise. They are passed on and not logged.

    Raises:
        CallFailed: The call took too long, or raised an error that is not `allowed`.
    """
    deadline = Deadline(getattr(context.limits, limit) if seconds is None else seconds)
    try:
        async with deadline:
            return await function()
    except BaseException as error:
        if not is_own_failure(error):
            raise
        subject = name if about is None else f"{about}: {name}"
        if deadline.expired():
            context.limited(limit)
            context.log.warning("%s did not return in time", subject)
            raise CallFailed(f"{name} did not return in time") from error
        if isinstance(error, allowed):
            raise
        context.log.exception("%s failed", subject)
        raise CallFailed(f"{name} failed") from error


async def has_whole(context: Context, digest: Digest) -> bool | None:
    """Return whether the store has the whole content of `digest`; None if it does not answer."""
    describe = partial(context.store.describe, digest)
    try:
        await call(describe, context, "the store", about=digest, allowed=(NotFound, Unavailable))
    except NotFound:
        return False
    except Unavailable:
        return None
    return True


def shows_in_flight(context: Context) -> bool:
    """Return whether the store shows what the runtime receives; see `Store.shows_in_flight`. False if it fails."""
    try:
        return bool(context.store.shows_in_flight())
    except BaseException as error:
        if not is_own_failure(error):
            raise
        context.log.exception("the store's shows_in_flight failed")
        return False
