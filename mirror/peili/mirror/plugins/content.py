"""The content of a store and the events of its `Store.watch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from peili.mirror.oci.references import Key


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """The state of a store, or of one key in it: one of `Have`, `Gone`, `Synced`. State, not a delta: the same
    event twice says nothing new.
    """


@dataclass(frozen=True, slots=True)
class Have(StoreEvent):
    """`key` can be served: whole, or (`complete` false) the first `available` of `size` bytes of it so far."""

    key: Key
    size: int | None = None
    complete: bool = True
    available: int | None = None


@dataclass(frozen=True, slots=True)
class Gone(StoreEvent):
    """`key` can no longer be served."""

    key: Key


@dataclass(frozen=True, slots=True)
class Synced(StoreEvent):
    """All that the store has, has been told; what follows are changes."""


class Content(ABC):
    """Bytes of one digest, owned by whoever opened them, who calls `aclose` (or uses ``async with``).

    Attributes, all of which may be read at any time:
        size: the whole size in bytes; None while it is not known.
        available: how many bytes from the start can be read now. Never shrinks.
        complete: whether `available` is all there will be. Never becomes false again.

    `readinto` and `wait` may be called concurrently, by one owner. What stood once stands: content that gets lost or
    is replaced raises `Aborted`, it never gives other bytes.
    """

    size: int | None
    available: int
    complete: bool

    def fileno(self) -> int | None:
        """A descriptor of a regular file whose byte n is byte n of the content, good until `aclose`; or None.

        For `os.pread` and sendfile; its file position means nothing.
        """
        return None

    @abstractmethod
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        """Read from `offset` on into `buffer`; the number of bytes read, which may be less than asked for.

        0 exactly where `offset` is at or past `available`. Cancelled, it ends at once and writes nothing more into
        `buffer`. Raises Aborted, StoreUnavailable.
        """

    @abstractmethod
    async def wait(self, past: int) -> int:
        """Wait until more than `past` bytes are available or the content is complete; the new `available`.

        Raises Aborted when that will never happen, StoreUnavailable.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Free what is held. Idempotent; does not raise."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
