"""Run by test_fork.py, as a process of its own: a host that forks while its containerd store is at work.

Ends with 0 where every child ended as it should, or says how many did not.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from tests.stores.containerd.running import ready

from peili.mirror.testing import watching
from peili.stores.containerd import ContainerdStore

CHILDREN = 100


def fork_child() -> int:
    """The status of a child made by `os.fork`, which does nothing."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def start_child() -> int:
    """The status of a child for which Python runs code between fork and exec."""
    return subprocess.run(["/bin/true"], preexec_fn=os.getpid, check=False).returncode


def start_child_as_user() -> int:
    """The status of a child that is started as a user, which Python does with fork as well."""
    return subprocess.run(["/bin/true"], user=os.geteuid(), check=False).returncode


async def main(address: str) -> int:
    assert "GRPC_ENABLE_FORK_SUPPORT" not in os.environ, "importing the store has left its switch behind"
    store = ContainerdStore(address)
    failed = 0
    async with ready(store), watching(store):
        for number in range(CHILDREN):
            make = (fork_child, start_child, start_child_as_user)[number % 3]
            failed += make() != 0
            await store.images()  # the connection still works
    return failed


if __name__ == "__main__":
    children_failed = asyncio.run(main(sys.argv[1]))
    sys.exit(f"{children_failed} of {CHILDREN} children failed" if children_failed else 0)
