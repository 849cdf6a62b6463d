"""Content that is open for an answer: no read that can be cancelled takes for ever, and what fails in a store is told
from what fails on the way to the client. How it is opened is opening.py's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Self

from peili.mirror.errors import PeiliError, StoreUnavailable
from peili.mirror.limits import Limits
from peili.mirror.plugins.content import Content
from peili.mirror.support.deadlines import Deadline


class OpenContent:
    """`content` of a store, whose `name` is for the log. One owner, who closes it. `first` is what was read already.

    `limited` hears of each read that took too long.
    """

    def __init__(
        self,
        content: Content,
        name: str,
        *,
        first: bytes,
        limits: Limits,
        limited: Callable[[str], None],
        log: logging.Logger,
    ) -> None:
        self.first = first
        self._content = content
        self._name = name
        self._patience = limits.stall_timeout
        self._limited = limited
        self._log = log

    def fileno(self) -> int | None:
        """As the content's."""
        return self._content.fileno()

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        """As the content's. Raises Aborted; StoreUnavailable, also where it takes longer than ``limits.stall_timeout``
        seconds, or the store raises what it should not: a ConnectionError of its own must not pass for the client's.
        """
        bound = Deadline(self._patience)  # some 6 µs of the 190 that a piece takes over TLS
        try:
            async with bound:
                return await self._content.readinto(offset, buffer)
        except PeiliError:
            raise
        except Exception as error:
            if bound.expired():
                self._limited("stall_timeout")
                raise StoreUnavailable(f"the store does not read on at byte {offset} in time") from error
            raise failed(self._log, self._name, error) from error

    async def aclose(self) -> None:
        """Close the content. Does not raise: the answer was given."""
        try:
            async with Deadline(self._patience):
                await self._content.aclose()
        except Exception as error:  # noqa: BLE001 - a stranger's store may raise anything
            failed(self._log, self._name, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def failed(log: logging.Logger, name: str, error: BaseException) -> StoreUnavailable:
    """What to raise from `error`, which a store should not have raised; that is logged."""
    log.error("%s: the store failed", name, exc_info=error)
    return StoreUnavailable("the store failed")
