"""A router whose members are those that Talos has discovered, read from a file or from the output of a command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import ConfigError, Context, MembershipRouter, Options, Peer
from peili.routers.file.source import FileSource, MemberSource, SourceError
from peili.routers.talos.members import InvalidMembers, parse_members
from peili.routers.talos.source import CommandSource

_LOG = logging.getLogger(__name__)
_EXAMPLE = '["talosctl", "get", "members", "-o", "json"]'


@dataclass(frozen=True, slots=True)
class TalosOptions:
    """The checked options of `TalosRouter`.

    Attributes:
        file: The file to read; None if there is a command.
        command: The program to run, and its arguments; empty if there is a file.
        port: The port of the members' peer doors.
        scheme: ``http`` or ``https``.
        interval: Seconds between two reads.
    """

    file: Path | None = None
    command: tuple[str, ...] = ()
    port: int = 5051
    scheme: str = "http"
    interval: float = 5.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check the options in `config`. Raises ConfigError."""
        options = Options(config, "file", "command", "port", "scheme", "interval")
        if ("file" in options) == ("command" in options):
            raise ConfigError("file", f"either file, a path, or command, as in {_EXAMPLE}")
        expected = f"a list of a program and its arguments, as in {_EXAMPLE}"
        command = options.texts("command", (), expected=expected)
        if any("\0" in each for each in command):
            raise options.wrong("command", expected)
        return cls(
            options.path("file", None, expected="the path of a file"),
            command,
            options.integer("port", 5051, minimum=1, maximum=65535, expected="a port from 1 to 65535"),
            options.choice("scheme", ("http", "https"), "http"),
            options.number("interval", 5.0, minimum=0.05, expected="seconds, 0.05 or more"),
        )


class TalosRouter(MembershipRouter):
    """A router whose members are those that ``talosctl get members -o json`` prints. This host may be one of them.

    A member's id is its node id. Its URLs are its addresses in Talos's order, each with the port of the peer door. Its
    labels are ``hostname``, ``machineType`` and ``operatingSystem``. The router reads the members every `interval`
    seconds. If this fails, it logs the error once, in one line, and the last members stay.
    """

    def __init__(self, options: TalosOptions) -> None:
        self._options = options
        self._log: logging.Logger = _LOG

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from its options.

        They are either ``file``, a path, or ``command``, a list of a program and its arguments, which is run without a
        shell; ``port`` (5051) and ``scheme`` (``http``) of the members' peer doors; and ``interval`` (5) in seconds.
        """
        return cls(TalosOptions.from_config(config))

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        self._log = context.log
        async with super().run(context):
            yield

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        source = self._create_source()
        last: list[Peer] | None = None
        last_error = ""
        while True:
            try:
                text = await source.read()
                if text is None:
                    peers = last
                else:  # in a thread, because the text may be long
                    peers = await asyncio.to_thread(parse_members, text, self._options.scheme, self._options.port)
                last_error = ""
            except (SourceError, InvalidMembers) as error:
                peers, source = last, self._create_source()  # a new source reads a file even if it has not changed
                if str(error) != last_error:
                    last_error = str(error)
                    self._log.warning("the members can't be read, the last known ones stay: %s: %s", source, error)
            if peers is not None and peers != last:
                last = peers
                yield peers
            await asyncio.sleep(self._options.interval)

    def _create_source(self) -> MemberSource:
        options = self._options
        return FileSource(options.file) if options.file is not None else CommandSource(options.command)
