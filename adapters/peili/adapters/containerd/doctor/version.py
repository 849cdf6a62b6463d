"""Which containerd it is whose configuration is changed: the one that runs, else the one that is installed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from peili.adapters.containerd.hosts_toml.meaning import Version
from peili.mirror import Unavailable
from peili.stores.containerd.api import ContainerdApi

_PATIENCE = 3.0
"""Seconds that containerd has to say its version."""


def understood(found: str | None, warn: Callable[[str], object]) -> str | None:
    """The version that was found, where it says one; else None, as if there were none, and `warn` is told."""
    if found is not None:
        try:
            Version.parse(found)
        except ValueError:
            warn(f"containerd's version is {found!a}, which tells nothing: what all versions understand is written")
            return None
    return found


async def version_at(socket: Path) -> str | None:
    """The version of the containerd that listens on `socket`; None where none answers in three seconds."""
    try:
        async with asyncio.timeout(_PATIENCE), ContainerdApi(socket) as api:
            return await api.version()
    except (TimeoutError, Unavailable):
        return None


async def version_installed() -> str | None:
    """What the command `containerd` says; None where there is none."""
    command = shutil.which("containerd")
    if command is None:
        return None
    process = await asyncio.create_subprocess_exec(command, "--version", stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(_PATIENCE):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    words = output.decode(errors="replace").split()  # containerd github.com/containerd/containerd 1.6.20 …
    return words[2] if len(words) > 2 else None
