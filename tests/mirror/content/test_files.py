"""`FileContent`: content that is a whole file."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
from pathlib import Path

import pytest
from tests.support.waiting import until

from peili.mirror import Aborted, NotFound
from peili.mirror.content import files as module
from peili.mirror.content.files import FileContent, open_below

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(bytes(range(200)))
    return path


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be in the page cache."""
    monkeypatch.setattr(module, "_NOWAIT", 0)


def replace(path: Path, data: bytes, *, in_place: bool) -> None:
    if not in_place:
        path.unlink()
    path.write_bytes(data)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("cached", [True, False])
async def test_a_read_returns_the_requested_bytes(path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setattr(module, "_NOWAIT", 0)
    async with await FileContent.open(path) as content:
        buffer = memoryview(bytearray(50))
        assert await content.readinto(20, buffer) == 50
        assert bytes(buffer) == bytes(range(20, 70))
        assert await content.readinto(190, buffer) == 10
        assert await content.readinto(200, buffer) == 0
        assert await content.readinto(1000, buffer) == 0
        assert await content.wait(1000) == 200


@pytest.mark.parametrize("change", ["shorter", "longer", "overwritten"])
async def test_a_changed_file_is_aborted(path: Path, change: str) -> None:
    os.utime(path, ns=(0, 0))
    async with await FileContent.open(path, frozen=True) as content:
        data = {"shorter": b"", "longer": bytes(300), "overwritten": bytes(200)}[change]
        replace(path, data, in_place=True)
        with pytest.raises(Aborted):
            await content.readinto(0, memoryview(bytearray(10)))


async def test_a_removed_or_replaced_file_stays_readable(path: Path) -> None:
    async with await FileContent.open(path, frozen=True) as content:
        replace(path, b"something else", in_place=False)
        buffer = memoryview(bytearray(3))
        assert await content.readinto(7, buffer) == 3
        assert bytes(buffer) == b"\x07\x08\x09"


async def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "link", "fifo", "."):
        with pytest.raises(NotFound):
            await FileContent.open(tmp_path / name)


@pytest.mark.usefixtures("in_threads")
async def test_a_cancelled_read_ends_at_once_and_leaves_the_buffer_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()
    real = os.pread
    seen: list[bytes] = []

    def slow(fd: int, size: int, offset: int) -> bytes:
        started.set()
        go_on.wait(600)
        seen.append(real(fd, size, offset))
        return seen[-1]

    monkeypatch.setattr(os, "pread", slow)
    before = descriptors()
    content = await FileContent.open(path)
    buffer = bytearray(10)
    reading = asyncio.create_task(content.readinto(5, memoryview(buffer)))
    await asyncio.to_thread(started.wait, 60)
    reading.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([reading])
    assert reading.cancelled()
    await content.aclose()  # nor may this let the descriptor's number be used anew
    go_on.set()
    await until(lambda: descriptors() == before)
    assert seen == [bytes(range(5, 15))]
    assert buffer == bytes(10)


@pytest.mark.usefixtures("in_threads")
async def test_a_disk_error_after_a_cancelled_read_is_ignored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    started, go_on = threading.Event(), threading.Event()

    def failing(fd: int, size: int, offset: int) -> bytes:
        started.set()
        go_on.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    before = descriptors()
    content = await FileContent.open(path)
    reading = asyncio.create_task(content.readinto(5, memoryview(bytearray(10))))
    await asyncio.to_thread(started.wait, 60)
    reading.cancel()
    await asyncio.wait([reading])
    del reading  # its traceback refers to the frames of the cancelled read
    await content.aclose()
    go_on.set()
    await until(lambda: descriptors() == before)
    gc.collect()
    assert unhandled == []


async def test_nothing_stays_open(path: Path) -> None:
    before = descriptors()
    content = await FileContent.open(path)
    await content.aclose()
    await content.aclose()
    assert content.fileno() is None
    with pytest.raises(ValueError, match="closed"):
        await content.readinto(0, memoryview(bytearray(1)))
    assert descriptors() == before


async def test_a_cancelled_opening_leaks_no_descriptor(path: Path) -> None:
    go_on, opened = threading.Event(), threading.Event()

    def slow(path: str | Path) -> int:
        go_on.wait(60)
        fd = os.open(path, os.O_RDONLY)
        opened.set()
        return fd

    before = descriptors()
    opening = asyncio.create_task(FileContent.open(path, opener=slow))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    await asyncio.to_thread(opened.wait, 60)
    async with asyncio.timeout(60):
        while descriptors() != before:  # noqa: ASYNC110 - a thread closes it soon, and tells nobody
            await asyncio.sleep(0.01)


def test_nothing_outside_of_a_directory_is_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "blobs" / "sha256").mkdir(parents=True)
    (outside / "sha256").mkdir(parents=True)
    (root / "blobs" / "sha256" / "right").write_bytes(b"right")
    for secret in (outside / "secret", outside / "sha256" / "secret"):
        secret.write_bytes(b"secret")
    (root / "blobs" / "sha256" / "link").symlink_to(outside / "secret")
    (root / "linked").symlink_to(outside)
    (root / "blobs" / "up").symlink_to("../../outside")
    right = open_below(root, "blobs/sha256/right")
    assert os.read(right, 100) == b"right"
    os.close(right)
    for path in (
        "blobs/sha256/link",
        "linked/secret",
        "linked/sha256/secret",
        "blobs/up/secret",
        "../outside/secret",
        "blobs/../../outside/secret",
        outside / "secret",
        "blobs/sha256",
        "missing",
    ):
        with pytest.raises(NotFound):
            open_below(root, path)
    alias = tmp_path / "alias"
    alias.symlink_to(root)  # the root itself may be a link: the operator has chosen it
    os.close(open_below(alias, "blobs/sha256/right"))
