"""The memory of a relay in its own process; peers and runtimes are outside of it."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.mirror.relay.pulling import KIB, MIB, content, path_of

from peili.mirror import Digest, Limits, Mirror, PushRouter, serve
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

TRANSFERS = 32


@asynccontextmanager
async def holder(data: bytes) -> AsyncGenerator[str]:
    """Serve a host that has `data`. Yields its URL."""
    store = MemoryStore()
    store.add(data)
    async with (
        Mirror(store, PushRouter(), limits=Limits(uploads_per_peer=TRANSFERS)) as mirror,
        serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
    ):
        yield f"http://{serving.peer_addresses[0]}"


@contextmanager
def relay(peer: str, directory: Path, *flags: str) -> Generator[subprocess.Popen[bytes]]:
    """Run `peili serve` with an empty store and the peer `peer`."""
    doors = ("local.listen=127.0.0.1:0", "peer.listen=127.0.0.1:0")
    sets = (*doors, "store.kind=memory", "router.kind=static", f'router.peers=["{peer}"]', *flags)
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", *(f"--set={each}" for each in sets)]
    with (directory / "stderr").open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


async def address_of(process: subprocess.Popen[bytes], directory: Path) -> tuple[str, int]:
    async with asyncio.timeout(60):
        while not (found := re.search(r"local door (127\.0\.0\.1):(\d+)", (directory / "stderr").read_text())):
            assert process.poll() is None, (directory / "stderr").read_text()
            await asyncio.sleep(0.02)
    return found[1], int(found[2])


async def begin(address: tuple[str, int], digest: Digest) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Start a transfer, and read the head of the response."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path_of(digest)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> str:
    """Read the rest of the body. Returns its digest."""
    running = hashlib.sha256()
    while size:
        piece = await reader.read(min(size, MIB))
        assert piece
        running.update(piece)
        size -= len(piece)
    await _close(writer)
    return running.hexdigest()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def peak(process: subprocess.Popen[bytes]) -> int:
    """Return the peak memory of `process` in KiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.parametrize("verify", ["true", "false"])
async def test_many_transfers_at_once_take_little_memory(verify: str, tmp_path: Path) -> None:
    """All transfers run at the same time.

    They are short, because the memory of a transfer does not depend on its length (see test_runtime.py).
    """
    data = content(16 * MIB)
    digest = Digest.of(data)
    async with holder(data) as peer:
        with relay(peer, tmp_path, f"mirror.verify={verify}") as process:
            address = await address_of(process, tmp_path)
            transfers = [await begin(address, digest) for _ in range(TRANSFERS)]
            ends = await asyncio.gather(*(finish(*each, len(data)) for each in transfers))
            assert set(ends) == {digest.encoded}
            assert peak(process) < 96 * KIB
