"""A program with few file descriptors that serves a mirror: ``python -m tests.mirror.server.few_descriptors COUNT``.

It prints the addresses of its doors. Then it reads commands from its standard input: ``fill`` opens all remaining
descriptors, ``free`` closes them. It answers each command with its limit of descriptors. It exits when the input ends.
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


class OtherDescriptors:
    """Descriptors that the program uses for something else."""

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


def print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def run(limit: int) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), insecure=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        print_json({"local": serving.local_addresses[0], "peer": serving.peer_addresses[0]})
        other = OtherDescriptors()
        while line := (await lines.readline()).decode().strip():
            getattr(other, line)()
            print_json(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(run(int(sys.argv[1])))
