"""Starts with the best holder, and asks the next one as well when it hesitates; the first with content wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from peili.mirror.errors import PeerUnavailable
from peili.mirror.peers import FAILED_BROKEN, Holder, Peer
from peili.mirror.relay.source import Source

Opener = Callable[[Holder], Coroutine[Any, Any, Source]]
Failed = Callable[[Peer, PeerUnavailable], None]


async def first_source(
    holders: Sequence[Holder], open_: Opener, failed: Failed, hedge_delay: float, log: logging.Logger
) -> Source | None:
    """The source of the first holder that has bytes in hand; None when all failed.

    Another holder is asked when one failed, or when none has answered within `hedge_delay` seconds. `failed` hears of
    each that would not do; a failure that is no peer's, and so a bug, goes to `log` as well, and ends no other's try.
    Those that came too late are closed.
    """
    waiting = list(holders)
    asked: dict[asyncio.Task[Source], Holder] = {}
    winner: Source | None = None
    try:
        while waiting or asked:
            if waiting:
                holder = waiting.pop(0)
                asked[asyncio.create_task(open_(holder))] = holder
            timeout = hedge_delay if waiting else None
            done, _ = await asyncio.wait(asked, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if winner := _outcome(task, asked.pop(task), failed, log):
                    return winner
        return None
    finally:
        await _close(asked, winner)


def _outcome(task: asyncio.Task[Source], holder: Holder, failed: Failed, log: logging.Logger) -> Source | None:
    peer = holder.peer
    try:
        return task.result()
    except PeerUnavailable as error:
        failed(peer, error)
    except Exception as error:
        log.exception("fetching from peer %s failed, which is a bug", peer.id)
        failed(peer, PeerUnavailable(f"peer {peer.id} can't be fetched from: {error!r}", FAILED_BROKEN))
    return None


async def _close(late: Collection[asyncio.Task[Source]], winner: Source | None) -> None:
    """End `late`, and close what they opened all the same."""
    for task in late:
        task.cancel()
    try:
        await asyncio.gather(*late, return_exceptions=True)
    except asyncio.CancelledError:
        if winner is not None:
            await winner.aclose()  # nobody will get it now
        raise
    finally:  # a gathering that is cancelled waits for its tasks too, but keeps what they gave to itself
        for task in late:
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().aclose()
