"""A router whose members stand in a text file, one to a line: ``ID URL [URL…]``."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import Any, Self

from peili.mirror import ConfigError, MembershipRouter, Peer


class FileRouter(MembershipRouter):
    """The members are the lines of the file at `path`, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        for key in config.keys() - {"path"}:
            raise ConfigError(key, "unknown option; members-file has: path")
        path = config.get("path")
        if not isinstance(path, str) or not path:
            raise ConfigError("path", 'the file that lists the members, such as "/etc/harbour/members"')
        return cls(Path(path))

    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        told: str | None = None
        while True:
            text = await asyncio.to_thread(self._path.read_text)
            if text != told:
                yield [Peer(name, tuple(urls)) for name, *urls in map(str.split, text.splitlines()) if urls]
                told = text
            await asyncio.sleep(0.5)
