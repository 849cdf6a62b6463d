"""`GrowingFileContent`: a file that another program still writes, and then moves to its final path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typing_extensions import override

from peili.mirror import Aborted, GrowingFileContent
from peili.mirror.testing import Arrival, ContentSubject, check_content

pytestmark = pytest.mark.anyio


class GrowingFile(Arrival):
    """A file in `folder` that grows, and moves to `final`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "data"
        self.final = folder / "blob"
        self.path.touch()

    def open(self, size: int | None = None) -> GrowingFileContent:
        return GrowingFileContent(os.open(self.path, os.O_RDONLY), self.final, size)

    @override
    async def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    @override
    async def commit(self) -> None:
        self.path.rename(self.final)

    @override
    async def abort(self) -> None:
        self.path.unlink()


@pytest.fixture
def file(tmp_path: Path) -> GrowingFile:
    return GrowingFile(tmp_path)


@pytest.mark.parametrize("is_size_known", [True, False])
async def test_a_growing_file_conforms(is_size_known: bool) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ContentSubject]:
        data = os.urandom(3000)
        with tempfile.TemporaryDirectory() as folder:
            file = GrowingFile(Path(folder))
            yield ContentSubject(file.open(len(data) if is_size_known else None), data, file)

    await check_content(factory)


async def test_a_file_that_gets_shorter_is_aborted(file: GrowingFile) -> None:
    await file.write(b"0123456789")
    async with file.open() as content:
        os.truncate(file.path, 4)
        with pytest.raises(Aborted):
            await content.readinto(0, memoryview(bytearray(10)))
        with pytest.raises(Aborted):
            await content.wait(4)
        assert content.available == 10


async def test_another_file_at_the_final_path_does_not_complete_it(file: GrowingFile) -> None:
    await file.write(b"0123456789")
    async with file.open() as content:
        shutil.copy(file.path, file.final)
        assert await content.wait(5) == 10
        assert not content.complete
        await file.abort()
        with pytest.raises(Aborted):
            await content.wait(10)


async def test_closed_content_is_not_waited_for(file: GrowingFile) -> None:
    content = file.open()
    await content.aclose()
    with pytest.raises(ValueError, match="closed"):
        await content.wait(0)
    with pytest.raises(ValueError, match="closed"):
        await content.readinto(0, memoryview(bytearray(1)))
