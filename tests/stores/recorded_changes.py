"""A program that runs the conformance kit on a store, and prints what the store changed in the file system.

test_read_only.py runs it. Its argument is a name in `KINDS`. What the tests themselves change does not count. Python
reports each change to the audit hooks of the process, so this also shows changes that failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from tests.conformance.stores import LayoutSubject, memory_store, oci_layout_store
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.stores.containerd.namespace import new_namespace
from tests.stores.containerd.test_conformance import ContainerdSubject
from tests.support.directories import short_directory
from typing_extensions import override

from peili.mirror import Content, Digest, Reference
from peili.mirror.testing import Arrival, StoreFactory, StoreSubject, check_store
from peili.stores.oci_layout import OciLayoutStore

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    f"os.{name}"
    for name in (
        *("chflags", "chmod", "chown", "link", "mkdir", "remove", "removexattr", "rename", "rmdir", "setxattr"),
        *("symlink", "truncate", "utime"),
    )
}
_by_the_test: ContextVar[bool] = ContextVar("by_the_test", default=False)


class Recorder:
    """Records the changes of this process that are not made `by_the_test`, until `stop`.

    Attributes:
        changes: A line for each.
    """

    def __init__(self) -> None:
        self.changes: list[str] = []
        self._is_stopped = False
        sys.addaudithook(self._on_event)

    def stop(self) -> None:
        """Record nothing more. An audit hook can't be removed."""
        self._is_stopped = True

    def _on_event(self, event: str, values: tuple[object, ...]) -> None:
        if self._is_stopped or _by_the_test.get():
            return
        if event == "open":
            path, _, flags = values
            if isinstance(flags, int) and flags & _WRITING:
                self.changes.append(f"open for writing: {path}")
        elif event in _CHANGES:
            self.changes.append(f"{event}: {values[0]}")


@contextmanager
def by_the_test() -> Generator[None]:
    token = _by_the_test.set(True)
    try:
        yield
    finally:
        _by_the_test.reset(token)


class UnrecordedArrival(Arrival):
    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    @override
    async def write(self, data: bytes) -> None:
        with by_the_test():
            await self._arrival.write(data)

    @override
    async def commit(self) -> None:
        with by_the_test():
            await self._arrival.commit()

    @override
    async def abort(self) -> None:
        with by_the_test():
            await self._arrival.abort()


class UnrecordedSubject(StoreSubject):
    """Changes the backend of `subject` by the test."""

    def __init__(self, subject: StoreSubject) -> None:
        self._subject = subject
        self.store = subject.store

    @override
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        with by_the_test():
            await self._subject.add(data, reference)

    @override
    async def remove(self, digest: Digest) -> None:
        with by_the_test():
            await self._subject.remove(digest)

    @override
    async def begin(self, data: bytes) -> Arrival | None:
        with by_the_test():
            arrival = await self._subject.begin(data)
        return None if arrival is None else UnrecordedArrival(arrival)

    @override
    async def lose(self) -> bool:
        with by_the_test():
            return await self._subject.lose()

    @override
    async def restore(self) -> None:
        with by_the_test():
            await self._subject.restore()


@asynccontextmanager
async def unrecorded(factory: StoreFactory) -> AsyncGenerator[StoreSubject]:
    """Yield what `factory` creates; only the changes of the store itself are recorded."""
    async with AsyncExitStack() as stack:
        with by_the_test():
            subject = await stack.enter_async_context(factory())
        yield UnrecordedSubject(subject)
        with by_the_test():
            await stack.aclose()


class WritingStore(OciLayoutStore):
    """A store that breaks the promise, so that the recorder is tested, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._used = path / "used"

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        with suppress(FileNotFoundError):  # while the layout is away
            await asyncio.get_running_loop().run_in_executor(None, self._used.touch)
        return await super().open(digest, partial=partial)


@asynccontextmanager
async def writing_store() -> AsyncGenerator[StoreSubject]:
    with tempfile.TemporaryDirectory() as folder:
        subject = LayoutSubject(Path(folder) / "layout")
        subject.store = WritingStore(subject.path)
        yield subject


@asynccontextmanager
async def containerd_store(containerd: Containerd, directory: Path, *, by_api: bool) -> AsyncGenerator[StoreSubject]:
    async with AsyncExitStack() as stack:
        yield ContainerdSubject(new_namespace(containerd, directory), stack, by_api=by_api, can_stop=True)


@contextmanager
def running_containerd(*, by_api: bool) -> Generator[StoreFactory]:
    """Run a containerd. Each store that the factory creates has a namespace of its own there."""
    with short_directory() as directory:
        containerd = Containerd(LoopbackNetwork().add_node("store"), directory / "c", unpack=False)
        containerd.start()
        try:
            yield partial(containerd_store, containerd, directory, by_api=by_api)
        finally:
            containerd.stop()


KINDS: dict[str, Callable[[], AbstractContextManager[StoreFactory]]] = {
    "memory": lambda: nullcontext(memory_store),
    "oci-layout": lambda: nullcontext(oci_layout_store),
    "containerd": partial(running_containerd, by_api=False),
    "containerd-api": partial(running_containerd, by_api=True),
    "writing": lambda: nullcontext(writing_store),
}


def main(kind: str) -> None:
    with KINDS[kind]() as factory:
        recorder = Recorder()
        asyncio.run(check_store(partial(unrecorded, factory)))
        recorder.stop()
    sys.stdout.write(json.dumps(sorted({*recorder.changes})))


if __name__ == "__main__":
    main(sys.argv[1])
