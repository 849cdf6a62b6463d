"""Lets the process of the command open as many descriptors as the system allows it. The library leaves that alone: a
process's limits are its owner's.
"""

from __future__ import annotations

import logging
import sys

_MOST = 1 << 20
"""Linux has no more for a process by default (fs.nr_open); some systems refuse a limit that is none."""


def raise_limit(log: logging.Logger) -> None:
    """Raise the soft limit to the hard one, and say so in one line. Does not raise."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - only where there is one

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("this process may open %d descriptors; that could not be raised to %d: %s", soft, wanted, error)
    else:
        log.info("this process may open %d descriptors; it was started with %d", wanted, soft)
