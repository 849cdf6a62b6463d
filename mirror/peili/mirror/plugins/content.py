"""The content of a store, and the events of `Store.watch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from peili.mirror.errors import Aborted
from peili.mirror.oci.references import Digest, Key
from peili.mirror.plugins.checks import check


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """The state of a store or of one key in it: `Have`, `Gone` or `Synced`.

    It is a state and not a change, so an event may be repeated.
    """


@dataclass(frozen=True, slots=True)
class Have(StoreEvent):
    """The store can serve `key`.

    Attributes:
        key: The key.
        size: Its size in bytes, if known.
        complete: Whether the content is whole. If not, it is still arriving.
        available: How many bytes from the start have arrived, if it is not whole.
        target: What a tag means here; None for a digest. A tag that moves is then in another state.
    """

    key: Key
    size: int | None = None
    complete: bool = True
    available: int | None = None
    target: Digest | None = None


@dataclass(frozen=True, slots=True)
class Gone(StoreEvent):
    """The store can no longer serve `key`."""

    key: Key


@dataclass(frozen=True, slots=True)
class Synced(StoreEvent):
    """Everything that the store has was yielded. From now on, changes are yielded."""


class Content(ABC):
    """The bytes of one digest. The caller that opened them owns them, and closes them (or uses ``async with``).

    `readinto` and `wait` may be called concurrently by the owner. Bytes never change: if content is lost or replaced,
    the methods raise `Aborted` and do not return other bytes.

    Attributes:
        size: The whole size in bytes; None while it is not known. All attributes may be read at any time.
        available: How many bytes from the start can be read now. It never shrinks.
        complete: Whether no more bytes than `available` will come. It never becomes false again.
    """

    size: int | None
    available: int
    complete: bool

    def fileno(self) -> int | None:
        """Return the descriptor of a regular file whose byte n is byte n of the content; None if there is none.

        The descriptor is valid until `aclose`. It is for `os.pread` and sendfile; its file position has no meaning.
        """
        return None

    @abstractmethod
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        """Read into `buffer` from `offset` on.

        If this is cancelled, it ends at once and writes nothing more into `buffer`.

        Args:
            offset: The first byte of the content to read.
            buffer: Where to write the bytes.

        Returns:
            The number of bytes read, which may be less than `buffer` takes. It is 0 only if `offset` is not below
            `available`.

        Raises:
            Aborted: The content was lost or replaced.
            StoreUnavailable: The store's backend does not answer.
        """

    @abstractmethod
    async def wait(self, past: int) -> int:
        """Wait until more than `past` bytes are available or the content is complete.

        Args:
            past: A number of bytes from the start of the content.

        Returns:
            The new `available`.

        Raises:
            Aborted: Neither will ever happen.
            StoreUnavailable: The store's backend does not answer.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Free all resources. Idempotent; never raises."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


async def read_into(content: Content, offset: int, buffer: memoryview) -> int:
    """Read as `Content.readinto` does. The content is that of a plug-in, so what it returns is checked.

    A wrong count would shift the bytes of a response, or make a loop endless.

    Raises:
        ValueError: `readinto` returned a number below zero, or more than `buffer` takes.
        TypeError: It returned no number.
        Aborted: The content was lost or replaced.
        StoreUnavailable: The store's backend does not answer.
    """
    count = await content.readinto(offset, buffer)
    check(count, int, f"{type(content).__name__}.readinto returned")
    if not 0 <= count <= len(buffer):
        name = f"{type(content).__name__}.readinto"
        raise ValueError(f"{name} returned {count}, which is not from 0 to {len(buffer)}, the size of the buffer")
    return count


async def read_whole(content: Content, most: int) -> bytes:
    """Return all bytes of content that is whole and small, such as a manifest.

    Args:
        content: The content.
        most: The largest number of bytes.

    Raises:
        ValueError: It has more than `most` bytes. None of them was read.
        Aborted: It ends before its size, or was lost.
        StoreUnavailable: The store's backend does not answer.
    """
    size = content.size or 0
    if size > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    data, count = bytearray(size), 0
    while count < size:
        read = await read_into(content, count, memoryview(data)[count:])
        if not read:
            raise Aborted(f"it ended after {count} bytes")
        count += read
    return bytes(data)
