"""A router whose members are listed in a file, which it follows as it changes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import Broadcast, ConfigError, Context, MembershipRouter, Options, Peer, base_url
from peili.routers.file.source import FileSource, SourceError, decode, read_file
from peili.routers.static import read_peers

_LOG = logging.getLogger(__name__)
_COMMENT = re.compile(r"(^|\s)#.*")


class InvalidFile(ValueError):
    """The text of the file is malformed. The message is one line that says where and why."""


class FileRouter(MembershipRouter):
    """A router whose members a file lists. This host may be one of them.

    The file is read again when it changes, or at once after `reload`. If it can't be read or has a mistake, the error
    is logged once, in one line, and the last members stay.

    Args:
        path: The file; see `parse_members`.
        interval: Seconds between two looks at whether it has changed.
    """

    def __init__(self, path: Path, *, interval: float = 2.0) -> None:
        self._path = path
        self._interval = interval
        self._log: logging.Logger = _LOG
        self._reloads = Broadcast()

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from its options: ``path`` of the file, and ``interval`` (2) in seconds."""
        options = Options(config, "path", "interval")
        path = options.path("path", expected="the path of a file")
        return cls(path, interval=options.number("interval", 2.0, minimum=0.05, expected="seconds, 0.05 or more"))

    def read(self) -> list[Peer]:
        """Return the members that the file lists now; none if it can't be read or has a mistake. Blocks."""
        try:
            return parse_members(decode(read_file(self._path)))
        except (OSError, SourceError, InvalidFile):
            return []

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        self._log = context.log
        async with super().run(context):
            yield

    @override
    def reload(self) -> None:
        self._reloads.notify()

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        source = FileSource(self._path)
        last: list[Peer] | None = None
        last_error = ""
        while True:
            reload = self._reloads.next_change
            try:
                text = await source.read()
                if text is not None:  # parsed in a thread, because the text may be long
                    peers = await asyncio.to_thread(parse_members, text)
                    last_error = ""
                    if peers != last:
                        last = peers
                        yield peers
            except (SourceError, InvalidFile) as error:
                if str(error) != last_error:
                    last_error = str(error)
                    self._log.warning("the members can't be read, the last known ones stay: %s: %s", source, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await reload.wait()
                source, last_error = FileSource(self._path), ""


def parse_members(text: str) -> list[Peer]:
    """Return the members that a file lists.

    A file that begins with ``[`` is JSON: a list with the same entries as the option ``peers`` of the router
    ``static``. Any other file has one URL a line. A ``#`` at the beginning of a line or after a space begins a comment.

    Raises:
        InvalidFile: The text is malformed. It is also malformed if it is empty: its writer was interrupted.
    """
    begin = text.lstrip("\ufeff \t\r\n")
    if not begin:
        raise InvalidFile("it is empty; a file without members has a comment, or is []")
    return _parse_json(text) if begin.startswith("[") else _parse_lines(text)


def _parse_json(text: str) -> list[Peer]:
    try:
        entries = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise InvalidFile(f"line {error.lineno}: no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"no JSON: {' '.join(str(error).split())}") from error
    try:
        return read_peers({"peers": entries})
    except ConfigError as error:
        raise InvalidFile(str(error)) from error


def _parse_lines(text: str) -> list[Peer]:
    urls: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            try:
                urls[base_url(content)] = None
            except ValueError as error:
                raise InvalidFile(f"line {number}: {error}") from error
    return [Peer(url, (url,)) for url in urls]
