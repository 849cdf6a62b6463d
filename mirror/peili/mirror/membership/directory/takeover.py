"""Tells the first home of a key that the runtime of this host fetches it from upstream, if that home was not asked.

Hosts may know different members for a moment: just after the start, and when members come or go. Each then asks what
it believes to be the first home. The right one would send a second host upstream if it did not learn of the first host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peili.mirror.membership.directory.home_client import HomeClient
from peili.mirror.membership.directory.upstream_rates import UpstreamFetch, UpstreamFetches
from peili.mirror.peer_api.leases import ClaimRequest, Granted, OtherHome
from peili.mirror.support.tasks import Tasks


class Takeover:
    """Tells homes about fetches that they do not know. For use on one loop.

    Args:
        tasks: Owns the tasks that tell homes: at most one for each home.
        client: Asks homes.
        upstream: What the runtime fetches.
        first_home: Returns the first home of a key; None if there is no home.
        told: Called with the id of a home that knows of a fetch now.
    """

    def __init__(
        self,
        tasks: Tasks,
        client: HomeClient,
        upstream: UpstreamFetches,
        first_home: Callable[[str], str | None],
        told: Callable[[str], None],
    ) -> None:
        self._tasks = tasks
        self._client = client
        self._upstream = upstream
        self._first_home = first_home
        self._told = told
        self._telling: dict[str, asyncio.Task[None]] = {}  # by home

    def run(self) -> None:
        """Tell homes that do not know about a fetch of theirs, in the background. Call it when homes have changed."""
        for fetch in self._upstream.arriving():
            home = self._next_home(fetch)
            if home is not None and home not in self._telling:
                task = self._telling[home] = self._tasks.start(self._tell(home))
                task.add_done_callback(lambda _, home=home: self._telling.pop(home))  # type: ignore[misc]  # bound early

    def _next_home(self, fetch: UpstreamFetch) -> str | None:
        """Return the home that should know about a fetch; None if it does, or can't be told."""
        home = self._first_home(fetch.key)
        return None if home == fetch.home or home is None or not self._client.has_leases(home) else home

    async def _tell(self, home: str) -> None:
        """Tell a home about all fetches of its keys. What fails is tried again at the next `run`."""
        for fetch in self._upstream.arriving():
            if self._next_home(fetch) != home or self._upstream.find(fetch.key) is not fetch:
                continue
            request = ClaimRequest(
                host=self._client.identity,
                key=fetch.key,
                offset=fetch.latest,
                size=fetch.size,
                can_share=True,
                upstream_rate=self._upstream.best_rate(),
                is_fetching=True,
            )
            match await self._client.acquire(home, request, is_final=False):
                case Granted():
                    fetch.home = home
                    self._told(home)
                case OtherHome():
                    continue  # it knows other members, and may be the first home of other keys
                case None:
                    return
