"""peili's conformance kits check that the router and the store keep the promises of their interfaces."""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from peili_harbour.router import FileRouter
from peili_harbour.store import ArchiveStore

from peili.mirror import Digest, Peer, Reference
from peili.mirror.testing import (
    MembershipSubject,
    StoreSubject,
    check_membership_router,
    check_options,
    check_store,
)


class MembersFile(MembershipSubject):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.router = FileRouter(path)

    async def set(self, members: Sequence[Peer]) -> bool:
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text("".join(f"{' '.join((each.id, *each.urls))}\n" for each in members))
        unfinished.rename(self.path)
        return True


def test_the_router() -> None:
    @asynccontextmanager
    async def factory(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
        with TemporaryDirectory() as folder:
            subject = MembersFile(Path(folder, "members"))
            await subject.set(members)
            yield subject

    check_options(FileRouter, {"path": "/etc/harbour/members"})
    asyncio.run(check_membership_router(factory))


class ArchiveFile(StoreSubject):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = ArchiveStore(path)
        self.blobs: dict[Digest, bytes] = {}
        self.tags: dict[Reference, Digest] = {}
        self.write()

    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        self.blobs[Digest.of(data)] = data
        if reference is not None:
            self.tags[reference] = Digest.of(data)
        self.write()

    async def remove(self, digest: Digest) -> None:
        del self.blobs[digest]
        self.tags = {tag: target for tag, target in self.tags.items() if target != digest}
        self.write()

    async def lose(self) -> bool:
        self.path.unlink()
        return True

    async def restore(self) -> None:
        self.write()

    def write(self) -> None:
        entries = [
            {"digest": digest, "annotations": {"io.containerd.image.name": str(tag)}}
            for tag, digest in self.tags.items()
        ]
        files = {f"blobs/sha256/{digest.encoded}": data for digest, data in self.blobs.items()}
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        unfinished = self.path.with_suffix(".new")
        with tarfile.open(unfinished, "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        unfinished.rename(self.path)


def test_the_store() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        with TemporaryDirectory() as folder:
            yield ArchiveFile(Path(folder, "images.tar"))

    check_options(ArchiveStore, {"path": "/media/stick/images.tar"})
    asyncio.run(check_store(factory))
