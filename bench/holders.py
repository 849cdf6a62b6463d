"""Holders as a process: `python -m bench.holders JOB`. Many are faulty in the same way, and one is honest.

They are the scripted peers of the tests (tests/mirror/relay/faults.py). bench/rows/health.py starts the process.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.mirror.relay.faults import FAULTS
from tests.mirror.relay.peers import ScriptedPeer, honest, listening, member
from tests.mirror.relay.pulling import content

from peili.mirror import Digest


def blobs(size: int, count: int) -> dict[Digest, bytes]:
    """Return the content that each holder has, by digest. It is the same in every process."""
    each = [content(size, seed) for seed in range(count)]
    return {Digest.of(data): data for data in each}


async def run_holders(job: dict[str, Any]) -> None:
    """Run the holders until SIGTERM. Their URLs are written to `job["urls"]`, the honest holder's last."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    content_by_digest = blobs(job["size"], job["count"])
    names = [*(f"faulty-{number}" for number in range(job["faulty"])), "honest"]
    async with AsyncExitStack() as stack:
        urls: list[str] = []
        for name in names:
            is_honest = name == "honest"
            script = honest if is_honest else FAULTS[job["fault"]]
            answering = member(name, content_by_digest, script, late=job["late"] if is_honest else 0)
            peer = await stack.enter_async_context(listening(ScriptedPeer(name, b"", answering)))
            urls += peer.urls
        file = Path(job["urls"])
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps(urls))
        unfinished.replace(file)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run_holders(json.loads(sys.argv[1])))
