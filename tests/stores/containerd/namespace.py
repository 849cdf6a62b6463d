"""One namespace of a containerd for one test, changed with ctr, without blocking the loop."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import struct
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.containerd import Containerd
from tests.lab.processes import freeze
from tests.stores.containerd.writer import Writer, set_image, writing

from peili.mirror import Digest, Reference
from peili.mirror.testing.images import Image, make_layout, pack_tar
from peili.stores.containerd import ContainerdStore

_numbers = itertools.count(1)

TAG = "docker.io/library/demo:v1"


def new_namespace(containerd: Containerd, directory: Path) -> Namespace:
    """Return a new namespace. Its images are created in `directory`."""
    return Namespace(containerd, f"test-{os.getpid()}-{next(_numbers)}", directory)


@dataclass(frozen=True)
class Namespace:
    """The namespace `name` of `containerd`. Images are created in `directory`."""

    containerd: Containerd
    name: str
    directory: Path

    def store(self, *, content_path: Path | None = None) -> ContainerdStore:
        """Return a store that serves only this namespace."""
        return ContainerdStore(
            str(self.containerd.socket),
            namespaces=[self.name],
            content_path=None if content_path is None else str(content_path),
        )

    async def ctr(self, *arguments: str) -> str:
        """Run ctr in this namespace. Returns what it prints; raises CommandFailed."""
        return await asyncio.to_thread(self.containerd.ctr, "--namespace", self.name, *arguments)

    async def flags(self, *command_and_flags: str) -> list[str]:
        """Return those of the flags that this version of the ctr command has."""
        flags = [each for each in command_and_flags if each.startswith("--")]
        known = await self.ctr(*(each for each in command_and_flags if each not in flags), "--help")
        return [each for each in flags if each in known]

    async def load(self, *tags: str, layers: Sequence[int] = (100_000, 50_000), platforms: Sequence[str] = ()) -> Image:
        """Import a new image without source labels, with `tags` (by default one)."""
        name = f"image-{next(_numbers)}"
        image = make_layout(self.directory / name, layers=layers, tags=tags or [TAG], platforms=platforms)
        await self.load_again(image)
        return image

    async def load_again(self, image: Image) -> None:
        """Import an existing image."""
        archive = pack_tar(image.path, image.path.with_suffix(".tar"))
        await self.ctr("images", "import", "--no-unpack", "--all-platforms", str(archive))

    async def put(self, data: bytes) -> Digest:
        """Add a blob that belongs to no image, and that garbage collection skips."""
        async with self.writing(data) as writer:
            await writer.write(data)
            await writer.commit()
        return Digest.of(data)

    async def tag(self, reference: Reference, digest: Digest, size: int) -> None:
        """Let `reference` mean a manifest that this namespace has, whether there is such an image or not."""
        await set_image(self.containerd.socket, self.name, str(reference), digest, size)

    def writing(self, data: bytes, key: str = "layer-") -> AbstractAsyncContextManager[Writer]:
        """Start an ingest of `data`, which is empty so far."""
        return writing(self.containerd.socket, self.name, data, key)

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Freeze the process of containerd."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.containerd.socket))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        freeze(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @property
    def content(self) -> Path:
        """The directory of containerd's content store."""
        return self.containerd.socket.parent / "root/io.containerd.content.v1.content"
