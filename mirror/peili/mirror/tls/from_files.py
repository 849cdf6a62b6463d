"""Makes something from files, such as a TLS context, and makes it again when they change."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from peili.mirror.errors import ConfigError
from peili.mirror.support.tasks import is_own_failure

_T = TypeVar("_T")

_REFRESH_INTERVAL = 1.0
_PAUSE = 60.0
"""Seconds after an error of a third-party `refresh`."""
_STOP_TIMEOUT = 5.0
"""Seconds for which a `refresh` that was cancelled is awaited."""


class Refreshed(Protocol):
    """Something that has to look once a second whether it is out of date."""

    async def refresh(self) -> None:
        """Load what is needed."""


@asynccontextmanager
async def refreshing(refreshed: Refreshed | None, log: logging.Logger) -> AsyncGenerator[None]:
    """Call ``refreshed.refresh`` once a second."""
    if refreshed is None:
        yield
        return
    task = asyncio.create_task(_refresh_forever(refreshed, log), name="peili TLS")
    try:
        yield
    finally:
        task.cancel()
        _, late = await asyncio.wait([task], timeout=_STOP_TIMEOUT)  # a subclass may ignore the cancellation
        if late:
            log.error("%s.refresh ignores that it was cancelled; not awaited", type(refreshed).__name__)


async def _refresh_forever(refreshed: Refreshed, log: logging.Logger) -> None:
    while True:
        await asyncio.sleep(_REFRESH_INTERVAL)
        try:
            await refreshed.refresh()
        except BaseException as error:  # a subclass is third-party code
            if not is_own_failure(error):
                raise
            log.exception("%s failed to refresh its certificates", type(refreshed).__name__)
            await asyncio.sleep(_PAUSE)


class FromFiles(ABC, Generic[_T]):
    """Makes something from files, and makes it again when they change.

    What was made before stays in use if that fails, and it is logged once.

    Args:
        paths: The files.
        log: Gets the errors; by default ``peili.tls``.

    Attributes:
        current: What was made last.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(self, *paths: Path, log: logging.Logger | None) -> None:
        self._log = log or logging.getLogger("peili.tls")
        self._paths = paths
        self._seen = self._states()
        self._logged = ""
        self.current = self._load()

    async def refresh(self) -> None:
        """Make it again if that is needed."""
        if self._is_outdated():
            await asyncio.to_thread(self._reload)

    def _is_outdated(self) -> bool:
        """Return whether it has to be made again."""
        return self._states() != self._seen

    def _reload(self) -> None:
        """Load the files again. Called in a thread. If it fails, the next `refresh` tries it again."""
        states = self._states()
        try:
            self.current = self._load()
        except (ConfigError, OSError, ImportError) as error:
            if str(error) != self._logged:
                self._logged = str(error)
                self._log.error("%s; what was read before stays in use", error)
            return
        self._seen, self._logged = states, ""
        self._log.info("read again: %s", ", ".join(map(str, self._paths)))

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]

    @abstractmethod
    def _load(self) -> _T:
        """Make it from the files.

        Raises:
            ConfigError: A file cannot be used.
            OSError: No file descriptor is left.
            ImportError: A library is missing.
        """


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
