"""Says where this host gets a key, for `MembershipRouter.acquire`: asks the homes, and then looks for whole holders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from peili.mirror.errors import RouterUnavailable
from peili.mirror.membership.directory.claiming import Asking
from peili.mirror.membership.directory.directory import Directory
from peili.mirror.peer_api.leases import FeedFrom, WaitFor
from peili.mirror.plugins.acquiring import Feed, Upstream, Wait, Want
from peili.mirror.support.tasks import Tasks

_T = TypeVar("_T")
_Advice: TypeAlias = Feed | Wait | Upstream
_HEAD_START = 0.05
"""Seconds in which a home may name holders before this host looks for whole ones itself."""
_MAX_WAIT = 5.0
"""The longest time in seconds that a home may let this host wait before it asks again."""


class Advisor:
    """Decides where this host gets a key. For use on one loop.

    A home of the key decides. A holder of the whole content that another home or a member itself reports is better than
    going upstream, and better than waiting. If no home answers, such holders are all that is known.

    Args:
        directory: The directory.
        tasks: Owns the tasks that look for whole holders.
    """

    def __init__(self, directory: Directory, tasks: Tasks) -> None:
        self._directory = directory
        self._tasks = tasks

    async def advise(self, want: Want, whole_holders: Callable[[], Coroutine[Any, Any, _Advice]]) -> _Advice:
        """Return where this host gets `want` now.

        Args:
            want: What is needed.
            whole_holders: Looks up the holders of the whole content, and returns `Feed` or `Upstream`. It is called if
                no home names a holder soon, and cancelled if one does later.

        Raises:
            RouterUnavailable: The router was exited meanwhile.
        """
        key, claiming = str(want.key), self._directory.claiming
        asking = claiming.ask(want)
        looking: asyncio.Task[_Advice] | None = None
        is_granted = False
        try:
            with self._directory.leases.asking(key):
                if asking is not None:
                    await asyncio.wait([asking.answer], timeout=_HEAD_START)
                if asking is None or not _names_holders(asking):
                    looking = self._tasks.start(whole_holders())
                advice, is_granted = await self._decide(want, asking, looking)
                return advice
        finally:
            if looking is not None:
                looking.cancel()
            if asking is not None:
                claiming.finish(key, asking, is_granted=is_granted)

    async def _decide(
        self, want: Want, asking: Asking | None, looking: asyncio.Task[_Advice] | None
    ) -> tuple[_Advice, bool]:
        """Return the advice, and whether it is what a home has granted."""
        key = str(want.key)
        claimed = None if asking is None else await _result(asking.answer)
        leases = self._directory.leases
        if claimed is not None and isinstance(claimed.granted.grant, FeedFrom):
            return Feed(claimed.holders, leases.grant_feed(key, claimed.home, claimed.granted.interval)), True
        found = Upstream() if looking is None else await _result(looking)
        if isinstance(found, Feed):
            return found, False
        if claimed is None:
            return Upstream(leases.take_upstream(want)), False
        if isinstance(claimed.granted.grant, WaitFor):
            return Wait(asyncio.get_running_loop().time() + min(claimed.granted.grant.seconds, _MAX_WAIT)), True
        return Upstream(leases.grant_upstream(want, claimed.home, claimed.granted.interval)), True


async def _result(answer: asyncio.Future[_T]) -> _T:
    """Return the result of a task of the router, which is not cancelled with the current task."""
    await asyncio.wait([answer])
    if answer.cancelled():  # not the current task was
        raise RouterUnavailable("the router was exited meanwhile")
    return answer.result()


def _names_holders(asking: Asking) -> bool:
    """Return whether a home has answered, and has named holders."""
    claimed = asking.answer.result() if asking.answer.done() and not asking.answer.cancelled() else None
    return claimed is not None and bool(claimed.holders)
