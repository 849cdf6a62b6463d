"""A router whose members are the lines of a text file: ``ID URL [URL…]``."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import Any, Self

from peili.mirror import MembershipRouter, Options, Peer


class FileRouter(MembershipRouter):
    """The members are the lines of the file at `path`. It is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(Options(config, "path").path("path", expected='a file of members, such as "/etc/harbour/members"'))

    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        previous: str | None = None
        while True:
            text = await asyncio.to_thread(self._path.read_text)
            if text != previous:
                yield [Peer(name, tuple(urls)) for name, *urls in map(str.split, text.splitlines()) if urls]
                previous = text
            await asyncio.sleep(0.5)
