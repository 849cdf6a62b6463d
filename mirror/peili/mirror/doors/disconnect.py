"""Ends the work on a request when the one who asked goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None], under_way: set[asyncio.Task[None]]) -> None:
    """Run `work`; cancel it, and wait until it has ended, when the client disconnects. Raises what `work` raises.

    Meanwhile its task is in `under_way`; whoever cancels it there ends the work in the same way.
    """
    task = asyncio.create_task(work)
    under_way.add(task)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})
        under_way.discard(task)
        if not gone.cancelled():
            gone.exception()  # a broken `receive` means the same as a client that left
    if not task.cancelled():
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
