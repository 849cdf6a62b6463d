"""Counts the functions and modules of this project that one request runs, and the depth of its call stack.

`python -m scripts.request_path` prints one line for a GET of a blob that a peer has, and one for a peer's HEAD of a
blob that this host has. With `--list`, it also prints the modules and their functions, and the deepest stack. Each
request is made twice. Only the second one counts, without the set-up of connections and peers. The peer runs in another
process and does not count. Both hosts know each other, and have told each other what they have. On a busy machine, the
counts contain work in the background, too.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Self

import httpx
from scripts.generated import ROOT

from peili.mirror import Digest, Mirror, Peer, PushRouter, serve
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

TREES = tuple(str(ROOT / tree) for tree in ("mirror", "routers", "stores", "adapters"))
MIB = 1 << 20
OWN, OTHER = b"own" * MIB, b"other" * MIB
"""The content of this host and of its peer."""


SETTLING = 3
"""Seconds in which the two hosts tell each other what they have."""
TRIES = 10
"""Each request is traced so often. The smallest trace counts: others may contain work in the background."""


class Trace:
    """The functions that run inside of the context, by module, in all threads.

    Call `watch` first.
    """

    _active: ClassVar[Trace | None] = None

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = defaultdict(set)
        self.stack: list[str] = []

    def __enter__(self) -> Self:
        Trace._active = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        Trace._active = None

    @classmethod
    def watch(cls) -> None:
        """Trace this thread and all threads that start later."""

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            if cls._active is not None and event == "call" and frame.f_code.co_filename.startswith(TREES):
                cls._active.add(frame)

        threading.setprofile(profile)
        sys.setprofile(profile)

    def count(self) -> int:
        """Return the number of functions."""
        return sum(map(len, self.functions.values()))

    def add(self, frame: FrameType) -> None:
        """Count a call."""
        self.functions[frame.f_code.co_filename].add(frame.f_code.co_qualname)
        stack, caller = [frame.f_code.co_qualname], frame.f_back
        while caller is not None:
            if caller.f_code.co_filename.startswith(TREES):
                stack.append(caller.f_code.co_qualname)
            caller = caller.f_back
        self.stack = max(self.stack, stack, key=len)

    def print(self, title: str, *, functions: bool) -> None:
        """Print the counts, and with `functions` also the modules and their functions."""
        print(f"{title}: {self.count()} functions in {len(self.functions)} modules, {len(self.stack)} frames deep")
        for file, names in sorted(self.functions.items()) if functions else ():
            print(f"  {Path(file).relative_to(ROOT)}: {', '.join(sorted(names))}")
        if functions:
            print(f"  the deepest stack: {' > '.join(reversed(self.stack))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="also print the modules and their functions")
    parser.add_argument("--run-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asyncio.run(run_peer() if arguments.run_peer else count(functions=arguments.list))


async def run_peer() -> None:
    """Serve `OTHER`, print the address, read that of the other host, and run until the standard input ends."""
    store, router = MemoryStore(), PushRouter()
    store.add(OTHER)
    mirror = Mirror(store, router, identity="other")
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        print(serving.peer_addresses[0], flush=True)
        url = (await asyncio.to_thread(sys.stdin.readline)).strip()
        router.set([Peer("this", (url,))])
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def peer_process() -> Generator[tuple[str, Callable[[str], None]]]:
    """Run a peer in another process. Yield its URL, and a function that tells it the URL of this host."""
    command = [sys.executable, "-m", "scripts.request_path", "--run-peer"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stdin is not None
        requests = process.stdin

        def tell(url: str) -> None:
            requests.write(f"{url}\n")
            requests.flush()

        yield f"http://{process.stdout.readline().strip()}", tell
        requests.close()


async def trace_request(client: httpx.AsyncClient, method: str, url: str) -> Trace:
    """Make a request and return what ran."""
    with Trace() as trace:
        (await client.request(method, url)).raise_for_status()
        await asyncio.sleep(0.2)  # work after the response belongs to the request
    return trace


async def count(*, functions: bool) -> None:
    """Make the two requests and print their counts."""
    Trace.watch()
    with peer_process() as (url, tell):
        store = MemoryStore()
        store.add(OWN)
        mirror = Mirror(store, StaticRouter([Peer("other", (url,))]), identity="this")
        async with (
            mirror,
            serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
            httpx.AsyncClient() as client,
        ):
            local, peer = serving.local_addresses[0], serving.peer_addresses[0]
            tell(f"http://{peer}")
            await asyncio.sleep(SETTLING)
            for title, method, address, content in (
                ("GET of a blob that a peer has", "GET", local, OTHER),
                ("a peer's HEAD of a blob that this host has", "HEAD", peer, OWN),
            ):
                blob = f"http://{address}/v2/library/demo/blobs/{Digest.of(content)}"
                (await client.request(method, blob)).raise_for_status()
                traces = [await trace_request(client, method, blob) for _ in range(TRIES)]
                min(traces, key=Trace.count).print(title, functions=functions)


if __name__ == "__main__":
    main()
