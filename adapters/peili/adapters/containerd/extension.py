"""`ContainerdHosts` keeps peili in front of containerd's registries while a mirror runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from typing_extensions import override

from peili.adapters.containerd.hosts_toml.hosts_files import HostsFiles
from peili.adapters.containerd.version import checked_version, running_version
from peili.adapters.files.editor import Outcome
from peili.mirror import Context, Plugin


class ContainerdHosts(Plugin):
    """An extension: ``Mirror(…, extensions=[ContainerdHosts(HostsFiles("http://127.0.0.1:5050"))])``.

    When the mirror starts, the extension applies `files`. When the mirror is drained or exits, the extension takes out
    of the files all that peili put in, also what an earlier, killed run left there. It logs what it cannot change;
    then it is not `ready`, but the mirror runs all the same.

    Args:
        files: The hosts.toml files.
        socket: The socket of containerd. The extension asks it for its version, and uses what that version supports.

    Attributes:
        files: The hosts.toml files, for any version of containerd.
    """

    def __init__(self, files: HostsFiles, *, socket: str | Path | None = None) -> None:
        self.files = files
        self._socket = None if socket is None else Path(socket)
        self._is_applied = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        files, version = self.files, None
        if self._socket is not None:
            version = checked_version(await running_version(self._socket), context.log.warning)
            files = files if version is None else files.for_version(version)
        try:
            outcome = await asyncio.to_thread(files.apply)
            _log(outcome, context.log)
            if self._socket is not None:
                # The command imports this module for every mirror. Only here, it needs the doctor.
                from peili.adapters.containerd.doctor.daemon_checks import kubernetes_warning  # noqa: PLC0415

                warning = await asyncio.to_thread(kubernetes_warning, version, self._socket)
                if warning is not None:
                    context.log.warning("%s", warning)
            self._is_applied = not outcome.problems
            yield
        finally:
            self._is_applied = False
            # An earlier run may have been for other registries.
            _log(await asyncio.to_thread(files.for_every_registry().remove), context.log)

    @override
    def ready(self) -> bool:
        """Return whether peili is in front of every chosen registry."""
        return self._is_applied


def _log(outcome: Outcome, log: logging.Logger) -> None:
    for change in outcome.changes:
        log.info("%s", change)
    for problem in outcome.problems:
        log.warning("%s", problem)
