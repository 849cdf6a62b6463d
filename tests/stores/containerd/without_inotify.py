"""A containerd store that gets nothing of inotify at first. test_inotify_limits.py runs it in a user namespace.

Its exit status is 0 if the store finds ingests nevertheless, and uses inotify once the limit is raised. It prints
warnings of the store.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from tests.stores.containerd.helpers import PROMPT, eventually, ready
from tests.stores.containerd.writer import writing
from tests.support.user_namespaces import LIMITS

from peili.mirror.testing import watching
from peili.stores.containerd import ContainerdStore


def watches() -> int:
    """Return how many directories this process watches."""
    count = 0
    for each in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # a file that was closed just now
            count += each.read_text().count("inotify wd:")
    return count


async def main(socket: Path, namespace: str, limit: Path) -> None:
    store = ContainerdStore(str(socket), namespaces=[namespace])
    async with ready(store), watching(store) as watched:
        for data in (os.urandom(1000), os.urandom(1000)):  # the second one shows that nothing is logged again
            async with writing(socket, namespace, data) as writer:
                await watched.until(lambda: writer.digest in watched.have, within=PROMPT)
                await writer.write(data)
                await writer.commit()
        assert not watches(), "the limit is not in force"
        limit.write_text("1000")  # noqa: ASYNC240 - it blocks for no time
        async with writing(socket, namespace, os.urandom(1000)):
            await eventually(watches, "directories are watched")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], LIMITS / sys.argv[3]))
