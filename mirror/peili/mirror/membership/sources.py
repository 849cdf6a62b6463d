"""Says where this host gets a key, for `MembershipRouter.acquire`: asks the homes, and members themselves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeAlias

from peili.mirror.membership.directory.claiming import Asking
from peili.mirror.membership.directory.directory import Directory
from peili.mirror.peer_api.leases import FeedFrom, WaitFor
from peili.mirror.plugins.interfaces import Feed, Upstream, Wait, Want
from peili.mirror.support.tasks import Tasks

_Advice: TypeAlias = Feed | Wait | Upstream
_MAX_WAIT = 5.0
"""The longest time in seconds that a home may let this host wait before it asks again."""


class KeySources:
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

    async def acquire(self, want: Want, whole_holders: Coroutine[Any, Any, _Advice]) -> _Advice:
        """Return where this host gets `want` now.

        Args:
            want: What is needed.
            whole_holders: Looks up the holders of the whole content, and returns `Feed` or `Upstream`. It is run here,
                at the same time, and cancelled if it is not needed.
        """
        key, directory = str(want.key), self._directory
        asking = directory.claiming.ask(want)
        looking = self._tasks.start(whole_holders)  # after `ask`, because `Directory.find` uses its answer
        is_granted = False
        try:
            with directory.leases.asking(key):
                advice, is_granted = await self._decide(key, asking, looking)
                return advice
        finally:
            looking.cancel()
            if asking is not None and not is_granted:
                directory.claiming.abandon(key, asking.answer)

    async def _decide(self, key: str, asking: Asking | None, looking: asyncio.Task[_Advice]) -> tuple[_Advice, bool]:
        """Return the advice, and whether it is what a home has granted."""
        claimed = None if asking is None else await asyncio.shield(asking.answer)
        if claimed is None:
            return await looking, False
        leases, home, interval = self._directory.leases, claimed.home, claimed.granted.interval
        if isinstance(claimed.granted.grant, FeedFrom):
            return Feed(claimed.holders, leases.grant_feed(key, home, interval)), True
        found = await looking
        if isinstance(found, Feed):
            return found, False
        if isinstance(claimed.granted.grant, WaitFor):
            return Wait(asyncio.get_running_loop().time() + min(claimed.granted.grant.seconds, _MAX_WAIT)), True
        return Upstream(leases.grant_upstream(key, home, interval)), True
