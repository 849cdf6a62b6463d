"""Counts what of this project one request runs: functions, modules, and how deep they call each other.

`python scripts/request_path.py` prints a line for a GET of a blob that a peer has, and one for a peer's HEAD of a blob
that this host has. With `--list`, each module and its functions follow. Each request was made before, so that what is
done once for a connection or a peer is not counted. The peer is a process of its own, which is not counted either.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from peili.mirror import Digest, Mirror, Peer, serve
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

ROOT = Path(__file__).parents[1]
TREES = tuple(str(ROOT / tree) for tree in ("mirror", "routers", "stores", "adapters"))
MIB = 1 << 20
OWN, OTHER = b"own" * MIB, b"other" * MIB
"""What this host has, and what its peer has."""


class Trace:
    """The functions that run while it is on, by module, in all threads."""

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = defaultdict(set)
        self.depth = 0
        self.counts = False

    def watch(self) -> None:
        """See what runs from now on in this thread, and in those that start later; it counts while `counts` is set."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def begin(self) -> None:
        """Count anew."""
        self.functions.clear()
        self.depth, self.counts = 0, True

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.counts or event != "call" or not frame.f_code.co_filename.startswith(TREES):
            return
        self.functions[frame.f_code.co_filename].add(frame.f_code.co_qualname)
        depth, caller = 0, frame.f_back
        while caller is not None:
            depth += caller.f_code.co_filename.startswith(TREES)
            caller = caller.f_back
        self.depth = max(self.depth, depth + 1)

    def tell(self, what: str, *, whole: bool) -> None:
        """Print the counts, and with `whole` what was counted."""
        count = sum(map(len, self.functions.values()))
        print(f"{what}: {count} functions in {len(self.functions)} modules, {self.depth} frames deep")
        for file, functions in sorted(self.functions.items()) if whole else ():
            print(f"  {Path(file).relative_to(ROOT)}: {', '.join(sorted(functions))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the modules and their functions, too")
    parser.add_argument("--be-the-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asyncio.run(be_the_peer() if arguments.be_the_peer else count(whole=arguments.list))


async def be_the_peer() -> None:
    """Serve `OTHER`, print where, and go on until the standard input ends."""
    store = MemoryStore()
    store.add(OTHER)
    mirror = Mirror(store, StaticRouter([]))
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        print(serving.peer_addresses[0], flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def a_peer() -> Generator[str]:
    """One in a process of its own: its URL."""
    command = [sys.executable, __file__, "--be-the-peer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://{process.stdout.readline().strip()}"
        process.stdin.close()


async def count(*, whole: bool) -> None:
    """Print what the two requests run."""
    trace = Trace()
    trace.watch()
    with a_peer() as url:
        store = MemoryStore()
        store.add(OWN)
        mirror = Mirror(store, StaticRouter([Peer("other", (url,))]))
        async with (
            mirror,
            serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
            httpx.AsyncClient() as ask,
        ):
            local, doors = serving.local_addresses[0], serving.peer_addresses[0]
            for what, method, at, content in (
                ("GET of a blob that a peer has", "GET", local, OTHER),
                ("a peer's HEAD of a blob that this host has", "HEAD", doors, OWN),
            ):
                blob = f"http://{at}/v2/library/demo/blobs/{Digest.of(content)}"
                (await ask.request(method, blob)).raise_for_status()
                trace.begin()
                (await ask.request(method, blob)).raise_for_status()
                await asyncio.sleep(0.2)  # what is done after the answer belongs to it
                trace.counts = False
                trace.tell(what, whole=whole)


if __name__ == "__main__":
    main()
