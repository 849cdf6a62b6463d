"""The steps of the demonstration, and what it prints about them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from peili.adapters.demo.client import require_oras
from peili.adapters.demo.cold_start import ColdStart
from peili.adapters.demo.hosts import DemoHost
from peili.mirror import Digest, PeiliError
from peili.mirror.testing import Image, make_layout

NAME = "registry.example/demo/app:v1"
_MIB = 1 << 20
_LAYERS = (_MIB, 4 * _MIB, 16 * _MIB, 32 * _MIB)
_FAIL_AFTER = 8 * _MIB
_TIMEOUT = 40.0  # seconds
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


def run(*, corrupt: bool) -> int:
    """Run the demonstration.

    Args:
        corrupt: Flip a bit in the image at its source.

    Returns:
        The exit code: 0 if every digest was right, else 1.

    Raises:
        PeiliError: The extra `demo` is not installed, or the demonstration took too long.
    """
    require_oras()
    with tempfile.TemporaryDirectory(prefix="peili-demo-") as directory:
        try:
            return 0 if asyncio.run(Demo(Path(directory)).run(corrupt=corrupt)) else 1
        except TimeoutError as error:
            raise PeiliError("the demo took too long") from error


class Demo:
    """The demonstration, with its files in `directory`. It prints on stdout."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hosts = tuple(DemoHost(name, directory) for name in "abc")
        self._pulls = 0

    async def run(self, *, corrupt: bool) -> bool:
        """Run it. Returns whether every pull had the right digests. Raises TimeoutError."""
        a, b, c = self._hosts
        _print("Three hosts on this machine, and no registry")
        for host in self._hosts:
            _print(f"   {host.name}  for its runtime {host.registry}, for its peers {host.peer.urls[0]}")
        image = await self._make_image(a, corrupt=corrupt)
        async with AsyncExitStack() as running, asyncio.timeout(_TIMEOUT):
            for host in self._hosts:
                running.push_async_callback(host.stop)
                await host.start(self._hosts, _log())
            _print("\n2. A client of b pulls the image")
            pulled = await self._pull(b, image)
            if pulled is None:
                _print("\n3. It tries again")
                await self._pull(b, image)
                _print("\nNo other host has the image, so a runtime goes upstream now.")
                _print("The wrong layer never reached the client as a whole.")
                return False
            await b.add_image(pulled, image.target, NAME)
            for blob in image.blobs:
                await c.find(blob.digest, 2)
            _print("   b stores the image, as a runtime does: now a and b have it")
            _print("\n3. A client of c pulls the image, and the host that sends the largest layer fails")
            right = await self._pull_while_a_host_fails(c, image) is not None
            _print("\n4. Clients of three new hosts pull at once what only a slow registry has")
            right = await ColdStart(self._directory, _print).run(_log()) and right
            _print("\nEvery digest was right." if right else "\nNot every digest was right.")
            return right

    async def _make_image(self, host: DemoHost, *, corrupt: bool) -> Image:
        image = await asyncio.to_thread(make_layout, host.layout, layers=_LAYERS, tags=[NAME])
        size = sum(blob.size for blob in image.blobs)
        _print(f"\n1. Only {host.name} has an image")
        _print(f"   {NAME}: {len(image.layers)} layers, {size / _MIB:.1f} MiB, in an OCI image layout")
        if corrupt:
            host.verifies = False
            _flip_a_bit(image.blob_path(image.layers[-1].digest))
            _print(f"   one bit of {image.layers[-1].digest} is flipped: {host.name} will send wrong bytes")
        return image

    async def _pull_while_a_host_fails(self, host: DemoHost, image: Image) -> Path | None:
        layer = image.layers[-1].digest
        failed: list[DemoHost] = []

        def choose(name: str) -> None:
            sender = next(each for each in self._hosts if each.name == name)
            sender.proxy.fail_after(_FAIL_AFTER, lambda: fail(sender))

        def fail(sender: DemoHost) -> None:
            failed.append(sender)
            _print(f"   {sender.name} fails after {_FAIL_AFTER // _MIB} MiB of {layer}")

        host.transfers.on_start(layer, choose)
        pulled = await self._pull(host, image)
        for each in failed:
            await each.stop()
        return pulled

    async def _pull(self, host: DemoHost, image: Image) -> Path | None:
        """Pull the image through `host`. Returns the directory; None if a file is missing or wrong."""
        self._pulls += 1
        directory = self._directory / f"pull-{self._pulls}"
        directory.mkdir()
        target = f"{host.registry}/{NAME}"
        _print(f"   oras pull {target}")
        started = time.monotonic()
        done = await self._run_client(host, target, directory)
        seconds = time.monotonic() - started
        wrong = await asyncio.to_thread(wrong_digests, directory, image.target.digest)
        if not done or wrong:
            _print(f"   the pull failed; wrong or missing: {', '.join(wrong) or 'nothing'}")
            return None
        size = sum(blob.size for blob in image.blobs)
        _print(f"   {size / _MIB:.1f} MiB in {seconds:.1f} s; all {len(image.blobs)} digests are right")
        return directory

    async def _run_client(self, host: DemoHost, target: str, directory: Path) -> bool:
        """Run the client and print its steps. Returns whether it succeeded."""
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "peili.adapters.demo.client", target, directory,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stdout = cast("asyncio.StreamReader", client.stdout)  # not None, because it is a pipe
        try:
            async for line in stdout:
                _print(_describe(json.loads(line), host))
            return await client.wait() == 0
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()


def wrong_digests(directory: Path, manifest: str) -> list[str]:
    """Check pulled files without any of the code that transferred them.

    Args:
        directory: The files, named by their digests.
        manifest: The digest of the manifest.

    Returns:
        The digests whose file is missing or has other content: of the manifest and of what it names.
    """
    if not _is_right(directory, manifest):
        return [manifest]
    document = json.loads((directory / manifest).read_bytes())
    digests = [blob["digest"] for blob in (document["config"], *document["layers"])]
    return [digest for digest in digests if not _is_right(directory, digest)]


def _is_right(directory: Path, digest: str) -> bool:
    algorithm, _, encoded = digest.partition(":")
    try:
        with (directory / digest).open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == encoded
    except FileNotFoundError:
        return False


def _flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def _describe(step: dict[str, Any], host: DemoHost) -> str:
    """Return a line about a step of the client."""
    if step["what"] == "failure":
        return f"   failed: {step['why']}"
    size, seconds = step["size"], step["seconds"]
    sources = host.transfers.bytes_by_peer(Digest(step["digest"]), size)
    origin = " then ".join(f"{name} ({_size(count)})" for name, count in sources.items())
    speed = f"{size / seconds / _MIB:6.0f} MiB/s" if size >= _MIB else ""
    what = f"   {step['what']:8} {step['digest']} {_size(size):>9}"
    return f"{what} {seconds * 1000:5.0f} ms {speed:12} from {origin}"


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count} B"


def _log() -> logging.Logger:
    """Return the parent of the mirrors' loggers. Its records become part of the output."""
    log = logging.getLogger("peili.demo")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.handlers[:] = [_PrintHandler()]
    return log


class _PrintHandler(logging.Handler):
    @override
    def emit(self, record: logging.LogRecord) -> None:
        host = record.name.split(".")[2]
        _print(f"   | {host} logs: {record.getMessage()}")


def _print(line: str) -> None:
    """Print a line at once, also if stdout is not a terminal. Digests are shortened."""
    sys.stdout.write(_DIGEST.sub(r"\1", line) + "\n")
    sys.stdout.flush()
