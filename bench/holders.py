"""Holders as a process: `python -m bench.holders JOB`. Many that are sick in the same way, and one that is honest.

They are those of the tests (tests/mirror/relay/sicknesses.py), which speak to a router as a peili does. Who starts
the process is bench/rows/health.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.mirror.relay.peers import ScriptedPeer, honest, listening, member
from tests.mirror.relay.pulling import content
from tests.mirror.relay.sicknesses import SICK

from peili.mirror import Digest


def blobs(size: int, count: int) -> dict[Digest, bytes]:
    """What they have: the same in every process."""
    each = [content(size, seed) for seed in range(count)]
    return {Digest.of(data): data for data in each}


async def hold(job: dict[str, Any]) -> None:
    """Until SIGTERM. The file `job["told"]` gets the URLs, that of the honest one last."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    held = blobs(job["size"], job["count"])
    names = [*(f"sick-{number}" for number in range(job["sick"])), "honest"]
    async with AsyncExitStack() as stack:
        urls: list[str] = []
        for name in names:
            is_honest = name == "honest"
            script = honest if is_honest else SICK[job["sickness"]]
            answering = member(name, held, script, late=job["late"] if is_honest else 0)
            peer = await stack.enter_async_context(listening(ScriptedPeer(name, b"", answering)))
            urls += peer.urls
        told = Path(job["told"])
        unfinished = told.with_suffix(".new")
        unfinished.write_text(json.dumps(urls))
        unfinished.replace(told)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(hold(json.loads(sys.argv[1])))
