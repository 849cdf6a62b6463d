"""A program that forks while its containerd store has an open stream. test_fork.py runs it.

Its exit status is 0 if every child ended without an error. If not, it prints how many failed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from tests.stores.containerd.helpers import ready

from peili.mirror.testing import watching
from peili.stores.containerd import ContainerdStore

CHILDREN = 100


def fork_child() -> int:
    """Return the status of a child of `os.fork` that does nothing."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def start_child() -> int:
    """Return the status of a child for which Python runs code between fork and exec."""
    return subprocess.run(["/bin/true"], preexec_fn=os.getpid, check=False).returncode


def start_child_as_user() -> int:
    """Return the status of a child with another user, for which Python uses fork, too."""
    return subprocess.run(["/bin/true"], user=os.geteuid(), check=False).returncode


async def main(address: str) -> int:
    assert "GRPC_ENABLE_FORK_SUPPORT" not in os.environ, "the import of the store has not restored the variable"
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
