"""The last act of the demonstration: several hosts pull at once what only a slow registry has."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, cast

from peili.adapters.demo.hosts import DemoHost
from peili.adapters.demo.registry import SlowRegistry
from peili.mirror import Digest, Reference
from peili.mirror.testing import Image, make_layout

NAME = "registry.example/demo/new:v1"
_MIB = 1 << 20
_LAYERS = (_MIB // 4, 12 * _MIB)
_RATE = 4 * _MIB
"""Bytes per second of the registry."""


class ColdStart:
    """Three new hosts, whose runtimes pull one image at the same moment.

    Args:
        directory: Where it creates its files.
        write: Prints a line.
    """

    def __init__(self, directory: Path, write: Callable[[str], None]) -> None:
        self._write = write
        self._origin = directory / "registry"
        self._hosts = tuple(DemoHost(name, directory) for name in "def")

    async def run(self, log: logging.Logger) -> bool:
        """Run it. Returns whether every host has the image with the right digests."""
        image = await asyncio.to_thread(make_layout, self._origin, layers=_LAYERS, tags=[NAME])
        size = sum(blob.size for blob in image.blobs)
        self._write(f"   {NAME}: {size / _MIB:.1f} MiB, at {_RATE / _MIB:.0f} MiB/s in all")
        with SlowRegistry(image, Reference.parse(NAME).tag, _RATE) as registry:
            async with AsyncExitStack() as running:
                for host in self._hosts:
                    running.push_async_callback(host.stop)
                    await host.start(self._hosts, log)
                started = time.monotonic()
                done = await asyncio.gather(*(self._pull(host, registry.address, image) for host in self._hosts))
                seconds = time.monotonic() - started
        copies = registry.sent / size
        self._write(f"   after {seconds:.1f} s the registry has sent {copies:.2f} copies for {len(done)} hosts;")
        self._write(f"   without peili it sends {len(done)}, which takes {len(done) * size / _RATE:.1f} s")
        return all(done)

    async def _pull(self, host: DemoHost, upstream: str, image: Image) -> bool:
        """Run the runtime of `host`, and print its progress. Returns whether it has the whole image."""
        arguments = (host.registry, upstream, NAME, str(host.layout))
        async with aclosing(_run_program("peili.adapters.demo.runtime", arguments)) as steps:
            async for step in steps:
                if step["what"] == "failure":
                    self._write(f"   {host.name}  failed: {step['why']}")
                elif step["what"] == "layer" and step["server"]:
                    self._write(f"   {host.name}  {_progress(step)}  {_origin(host, step)}")
        wrong = await asyncio.to_thread(_wrong_blobs, host, image)
        if wrong:
            self._write(f"   {host.name}  wrong or missing: {', '.join(wrong)}")
        return not wrong


async def _run_program(module: str, arguments: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
    """Run a module of Python, and yield the JSON objects that it prints. It ends with the generator."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        async for line in cast("asyncio.StreamReader", process.stdout):  # not None, because it is a pipe
            yield json.loads(line)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _progress(step: dict[str, Any]) -> str:
    received, size = step["received"], step["size"]
    width = 20 * received // size
    return f"[{'#' * width:20}] {received / _MIB:4.1f} of {size / _MIB:.1f} MiB"


def _origin(host: DemoHost, step: dict[str, Any]) -> str:
    if step["server"] == "upstream":
        return "from the registry"
    senders = host.transfers.bytes_by_peer(Digest(step["digest"]), step["size"])
    return f"from {' then '.join(senders)}" if senders else "from its store"


def _wrong_blobs(host: DemoHost, image: Image) -> list[str]:
    """Return the digests that the host does not have, or whose content is wrong."""
    wrong: list[str] = []
    for blob in image.blobs:
        path = host.layout / "blobs" / blob.digest.algorithm / blob.digest.encoded
        if not path.exists() or Digest.of(path.read_bytes(), blob.digest.algorithm) != blob.digest:
            wrong.append(blob.digest)
    return wrong
