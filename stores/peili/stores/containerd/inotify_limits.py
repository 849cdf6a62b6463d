"""The limits of inotify: what it costs if one is reached, and what to do."""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import Enum
from pathlib import Path


class InotifyLimit(Enum):
    """A limit of the system for each user. The value is what is limited."""

    INSTANCES = "instance"
    WATCHES = "watch"

    @property
    def setting(self) -> str:
        """The name of the limit for ``sysctl``."""
        return f"fs.inotify.max_user_{'instances' if self is InotifyLimit.INSTANCES else 'watches'}"

    @property
    def cost(self) -> str:
        """What was found, and what it costs, in one line."""
        value = self._read()
        number = "" if value is None else f" = {value}"
        return (
            f"no inotify {self.value} is left for this user ({self.setting}{number}); without one, peili looks into"
            " containerd's directories ten times a second, and notices new blobs and failed pulls later"
        )

    @property
    def fix(self) -> str:
        """What to do, in one line."""
        usual = 8192 if self is InotifyLimit.INSTANCES else 1 << 19
        return f"raise the limit, for example: sysctl -w {self.setting}={max(usual, 2 * (self._read() or 0))}"

    def _read(self) -> int | None:
        with suppress(OSError, ValueError):
            return int(Path("/proc/sys", self.setting.replace(".", "/")).read_text())
        return None


class LimitLog:
    """Logs that limits are reached, once each.

    Args:
        log: Receives the lines.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: set[InotifyLimit] = set()

    def note(self, limit: InotifyLimit) -> None:
        """Log that a limit is reached, unless this was logged."""
        if limit not in self._logged:
            self._logged.add(limit)
            self._log.warning("%s; %s", limit.cost, limit.fix)
