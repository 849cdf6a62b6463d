"""A host agent with few descriptors that serves a mirror: `python -m tests.mirror.doors.crowded DESCRIPTORS`.

It says where its doors are, and then obeys lines on its standard input: ``fill`` takes every descriptor that is left,
``free`` gives them back. Each is answered with the number that it may have open now. Ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sys

from peili.mirror import Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore


class Hoard:
    """Descriptors that an agent uses for something else."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def fill(self) -> None:
        while True:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                return

    def free(self) -> None:
        while self._held:
            os.close(self._held.pop())


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def run(most: int) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), insecure=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        say({"local": serving.local_addresses[0], "peer": serving.peer_addresses[0]})
        hoard = Hoard()
        while line := (await lines.readline()).decode().strip():
            getattr(hoard, line)()
            say(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(run(int(sys.argv[1])))
