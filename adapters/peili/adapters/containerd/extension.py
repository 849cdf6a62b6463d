"""peili in front of containerd's registries as long as a mirror runs: an agent's one switch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from typing_extensions import override

from peili.adapters.containerd.doctor.notice import unread
from peili.adapters.containerd.hosts_toml.hosts_files import HostsFiles
from peili.adapters.containerd.version import checked_version, running_version
from peili.adapters.files.editor import Outcome
from peili.mirror import Context, Plugin


class ContainerdHosts(Plugin):
    """``Mirror(…, extensions=[ContainerdHosts(HostsFiles("http://127.0.0.1:5050"))])``.

    `files` are applied when the mirror starts; when it is drained or left, all that is peili's is taken out. What can't
    be changed is logged; the mirror runs all the same, and this is not `ready`. With `socket`, the containerd there is
    asked for its version, so that what newer ones know is used.
    """

    def __init__(self, files: HostsFiles, *, socket: str | Path | None = None) -> None:
        self._files = files
        self._socket = None if socket is None else Path(socket)
        self._on = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        files, version = self._files, None
        if self._socket is not None:
            version = checked_version(await running_version(self._socket), context.log.warning)
            files = files if version is None else files.for_version(version)
        try:
            outcome = await asyncio.to_thread(files.apply)
            _tell(outcome, context.log)
            if self._socket is not None and (why := await asyncio.to_thread(unread, version, self._socket)):
                context.log.warning("%s", why)
            self._on = not outcome.problems
            yield
        finally:
            self._on = False
            # What a run that was killed had chosen, too.
            _tell(await asyncio.to_thread(files.for_every_registry().remove), context.log)

    @override
    def ready(self) -> bool:
        """Whether peili is in front everywhere."""
        return self._on


def _tell(outcome: Outcome, log: logging.Logger) -> None:
    for change in outcome.changes:
        log.info("%s", change)
    for problem in outcome.problems:
        log.warning("%s", problem)
