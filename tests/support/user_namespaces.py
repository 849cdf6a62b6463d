"""Runs commands with lower limits of the system than this process has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

LIMITS = Path("/proc/sys/user")
"""The limits of a user namespace, such as ``max_inotify_watches``. Those of others are not changed."""


def with_limit(name: str, value: int, command: Sequence[str]) -> list[str]:
    """Return `command`, extended so that it runs in a user namespace of its own, with this limit of `LIMITS`.

    It keeps its rights to the files of this user, and may change the limit.
    """
    script = f'echo {value} > {LIMITS / name} && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", *command]
