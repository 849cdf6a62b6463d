"""What a peer answers to HEAD, as the body of a source: it says how many bytes there are, and brings none."""

from __future__ import annotations

from peili.mirror.client.connection import Response

_DIGITS = 19
"""A number with more of them is no size."""


class HeadOnly:
    """The answer to a HEAD. As `Body`, with `length` as its head says it, and nothing to be read."""

    buffered = 0
    can_splice = False

    def __init__(self, answer: Response) -> None:
        self.head = answer.head
        self.length = _length(answer.head.header("content-length"))
        self.left = self.length or 0
        answer.close()  # there is nothing more to come: the connection is free for others

    async def begin(self) -> None:
        """Returns at once."""

    async def readinto(self, buffer: memoryview) -> int:
        """Not to be used."""
        raise NotImplementedError

    async def splice(self, pipe: int, count: int) -> int:
        """Not to be used."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


def _length(text: str | None) -> int | None:
    """What a Content-Length says; None where it says nothing that can be."""
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > _DIGITS:
        return None
    return int(text)
