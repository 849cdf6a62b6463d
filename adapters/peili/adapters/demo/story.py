"""What happens in the demonstration, one step after the other, and the words for it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from peili.adapters.demo import check
from peili.adapters.demo.hosts import Host
from peili.adapters.standalone.about import version
from peili.mirror import Digest
from peili.mirror.limits import MIB
from peili.mirror.testing.images import Image, make_layout

NAME = "registry.example/demo/app:v1"
_LAYERS = (MIB, 4 * MIB, 16 * MIB, 32 * MIB)
_LEAVES_AFTER = 8 * MIB
_TIME = 20.0  # seconds
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


class Story:
    """The demonstration, in `directory`, told on stdout."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hosts = tuple(Host(name, directory) for name in "abc")
        self._pulls = 0

    async def tell(self, *, corrupt: bool) -> bool:
        """Whether every digest was right, everywhere. Raises TimeoutError."""
        a, b, c = self._hosts
        say(f"peili {version('peili')}: three hosts on this machine, and no registry to go to")
        for host in self._hosts:
            say(f"   {host.name}  for its runtime {host.registry}, for its peers {host.as_peer.urls[0]}")
        image = await self._make(a, corrupt=corrupt)
        async with AsyncExitStack() as running, asyncio.timeout(_TIME):
            for host in self._hosts:
                running.push_async_callback(host.leave)
                await host.join(self._hosts, _log())
            say("\n2. A client of b pulls it")
            got = await self._pull(b, image)
            if got is None:
                say("\n3. It tries again")
                await self._pull(b, image)
                say("\nNobody else has it: a runtime goes upstream now. What was wrong was never passed on whole.")
                return False
            await b.keep(got, image.target, NAME)
            say("   b keeps it, as a runtime does: now a and b have it")
            say("\n3. A client of c pulls it, and the host that feeds the largest layer goes away")
            right = await self._pull_while_one_leaves(c, image) is not None
            say("\nEvery digest was right." if right else "\nNot every digest was right.")
            return right

    async def _make(self, host: Host, *, corrupt: bool) -> Image:
        image = await asyncio.to_thread(make_layout, host.layout, layers=_LAYERS, tags=[NAME])
        size = sum(blob.size for blob in image.blobs)
        say(f"\n1. An image that only {host.name} has")
        say(f"   {NAME}: {len(image.layers)} layers, {size / MIB:.1f} MiB, in an OCI image layout")
        if corrupt:
            host.lies = True
            _flip_a_bit(image.blob_path(image.layers[-1].digest))
            say(f"   one bit of {image.layers[-1].digest} is flipped: {host.name} will lie")
        return image

    async def _pull_while_one_leaves(self, host: Host, image: Image) -> Path | None:
        layer = image.layers[-1].digest
        gone: list[Host] = []

        def feeds(name: str) -> None:
            feeder = next(each for each in self._hosts if each.name == name)
            feeder.cable.cut_after(_LEAVES_AFTER, lambda: goes(feeder))

        def goes(feeder: Host) -> None:
            gone.append(feeder)
            say(f"   {feeder.name} goes away after {_LEAVES_AFTER // MIB} MiB of {layer}")

        host.ledger.when_begun(layer, feeds)
        got = await self._pull(host, image)
        for each in gone:
            await each.leave()
        return got

    async def _pull(self, host: Host, image: Image) -> Path | None:
        """Where the image is that a client got through `host`; None where it is not whole or not right."""
        self._pulls += 1
        directory = self._directory / f"pull-{self._pulls}"
        directory.mkdir()
        target = f"{host.registry}/{NAME}"
        say(f"   oras pull {target}")
        began = time.monotonic()
        done = await self._run_client(host, target, directory)
        seconds = time.monotonic() - began
        wrong = await asyncio.to_thread(check.wrong, directory, image.target.digest)
        if not done or wrong:
            say(f"   not pulled; wrong or missing: {', '.join(wrong) or 'nothing'}")
            return None
        size = sum(blob.size for blob in image.blobs)
        say(f"   {size / MIB:.1f} MiB in {seconds:.1f} s; all {len(image.blobs)} digests are right")
        return directory

    async def _run_client(self, host: Host, target: str, directory: Path) -> bool:
        """Run the client and tell what it does; whether it got everything."""
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "peili.adapters.demo.client", target, directory,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stdout = cast("asyncio.StreamReader", client.stdout)  # there, since a pipe was asked for
        try:
            async for line in stdout:
                say(_told(json.loads(line), host))
            return await client.wait() == 0
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()


def _flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def _told(step: dict[str, Any], host: Host) -> str:
    """One line for what the client has done."""
    if step["what"] == "failure":
        return f"   failed: {step['why']}"
    size, seconds = step["size"], step["seconds"]
    sources = host.ledger.sources(Digest(step["digest"]), size)
    origin = " then ".join(f"{name} ({_size(count)})" for name, count in sources.items())
    speed = f"{size / seconds / MIB:6.0f} MiB/s" if size >= MIB else ""
    what = f"   {step['what']:8} {step['digest']} {_size(size):>9}"
    return f"{what} {seconds * 1000:5.0f} ms {speed:12} from {origin}"


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count} B"


def _log() -> logging.Logger:
    """What the mirrors have to say becomes part of the story."""
    log = logging.getLogger("peili.demo")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.handlers[:] = [_Telling()]
    return log


class _Telling(logging.Handler):
    @override
    def emit(self, record: logging.LogRecord) -> None:
        host = record.name.split(".")[2]
        say(f"   | {host} says: {record.getMessage()}")


def say(line: str) -> None:
    """Tell it now, also where stdout is no terminal; digests in short."""
    sys.stdout.write(_DIGEST.sub(r"\1", line) + "\n")
    sys.stdout.flush()
