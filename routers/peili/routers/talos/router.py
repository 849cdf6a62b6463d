"""A router whose members are those that Talos has discovered: from a file, or from a command that prints them.

How they are read is talos_source.py's business, what the resource means talos_members.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from typing_extensions import override

from peili.mirror import Context, MembershipRouter, Peer
from peili.routers.talos.members import NotMembers, peers_of
from peili.routers.talos.options import Options, read_options
from peili.routers.talos.source import CommandSource, FileSource, Source, Unreadable

_LOG = logging.getLogger(__name__)


class TalosRouter(MembershipRouter):
    """The members are what `talosctl get members -o json` prints; this host may be among them, as it is there.

    A member's id is its node id, its URLs are its addresses in Talos's order, each with the peer door's port; its
    labels are `hostname`, `machineType` and `operatingSystem`. Looked at every `interval` seconds. What can't be had
    or read is said in one line, once, and the last set stays.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._log: logging.Logger = _LOG

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Either ``file``, a path, or ``command``, a list of a program and its arguments, run without a shell.

        ``port`` (5051) and ``scheme`` (``http``) are those of the members' peer doors, ``interval`` (5) is in seconds.
        """
        return cls(read_options(config))

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        self._log = context.log
        async with super().run(context):
            yield

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        source = self._source()
        told: list[Peer] | None = None
        complaint = ""
        while True:
            try:
                text = await source.read()
                peers = told if text is None else await self._peers_of(text)
                complaint = ""
            except (Unreadable, NotMembers) as error:
                peers, source = told, self._source()  # which does not take what is there for read
                if str(error) != complaint:
                    complaint = str(error)
                    self._log.warning("the members can't be had, the last known stay: %s: %s", source, complaint)
            if peers is not None and peers != told:
                told = peers
                yield peers
            await asyncio.sleep(self._options.interval)

    async def _peers_of(self, text: str) -> list[Peer]:
        """The peers in `text`, which may be long: a thread reads it."""
        return await asyncio.to_thread(peers_of, text, self._options.scheme, self._options.port)

    def _source(self) -> Source:
        options = self._options
        return FileSource(options.file) if options.file is not None else CommandSource(options.command)
