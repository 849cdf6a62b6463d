"""Which version of containerd runs or is installed on this host, and how that version reads hosts.toml."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from peili.mirror import Unavailable

_TIMEOUT = 3.0
"""Seconds within which containerd has to say its version."""


@dataclass(frozen=True, slots=True)
class ContainerdVersion:
    """A version of containerd, and what that version does differently from others.

    Attributes:
        major: The first number.
        minor: The second number.
        is_known: False if nobody knows the version. It then counts as 1.x, which accepts less, wherever one version has
            to be assumed.
    """

    major: int = 1
    minor: int = 6
    is_known: bool = True

    @property
    def candidates(self) -> tuple[ContainerdVersion, ...]:
        """The version itself; if it is not known, one version of each kind that behaves differently."""
        return (self,) if self.is_known else _KINDS

    @classmethod
    def parse(cls, text: str) -> ContainerdVersion:
        """Parse text such as ``1.6.20~ds1`` or ``v2.1.0-rc.1``. Raises ValueError."""
        major, minor, *_ = text.strip().removeprefix("v").split(".")
        return cls(int(major), int(minor))

    @property
    def ignores_hosts_without_header(self) -> bool:
        """Whether it ignores hosts that have no table header. Other versions read all, and need at least one host."""
        return self.major >= 2

    @property
    def reads_brackets_in_headers(self) -> bool:
        """Whether it reads a table header with a bracket in a name, such as the URL of an IPv6 address."""
        return self.major >= 2

    @property
    def reads_byte_order_mark(self) -> bool:
        """Whether it reads a file that begins with a byte-order mark."""
        return self.major < 2

    @property
    def has_referrers(self) -> bool:
        """Whether it knows the capability ``referrers``."""
        return (self.major, self.minor) >= (2, 2)

    @property
    def searches_docker_directory(self) -> bool:
        """Whether its default `config_path` includes ``/etc/docker/certs.d``."""
        return self.major >= 2

    @property
    def has_dial_timeout(self) -> bool:
        """Whether it knows the key ``dial_timeout``."""
        return (self.major, self.minor) >= (2, 1)


_KINDS = (ContainerdVersion(1, 6), ContainerdVersion(2, 0), ContainerdVersion(2, 1), ContainerdVersion(2, 2))


def checked_version(text: str | None, warn: Callable[[str], object]) -> str | None:
    """Return `text` if it is a version, otherwise None. If it is not a version, pass a message to `warn`."""
    if text is not None:
        try:
            ContainerdVersion.parse(text)
        except ValueError:
            warn(f"containerd's version is {text!a}, not a version number; peili writes what all versions read")
            return None
    return text


async def running_version(socket: Path) -> str | None:
    """Return the version of the containerd that listens on `socket`, or None if none answers within three seconds."""
    # gRPC takes long to import. A mirror needs it only if it asks a containerd.
    from peili.stores.containerd.api import ContainerdApi  # noqa: PLC0415

    try:
        async with asyncio.timeout(_TIMEOUT), ContainerdApi(socket) as api:
            return await api.version()
    except (TimeoutError, Unavailable):
        return None


async def find_version(socket: Path) -> str | None:
    """Return the version of the containerd that listens on `socket`, else of the installed one; None if unknown."""
    return await running_version(socket) or await installed_version()


async def installed_version() -> str | None:
    """Return the version that the command `containerd` prints; None if it prints none within three seconds."""
    command = shutil.which("containerd")
    if command is None:
        return None
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            command, "--version", stdin=null, stdout=pipe, stderr=null, start_new_session=True
        )
    except OSError:  # for example a program for another machine
        return None
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    line = b""
    try:
        with suppress(TimeoutError, ValueError):  # a ValueError is about a line that does not end
            async with asyncio.timeout(_TIMEOUT):
                line = await process.stdout.readline()
    finally:
        await _kill(process)
    words = line.decode(errors="replace").split()  # containerd github.com/containerd/containerd 1.6.20 …
    return words[2] if len(words) > 2 else None


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process group. A script's children may hold the pipe open, and asyncio waits for its end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):  # the disk of the program may hang
        async with asyncio.timeout(_TIMEOUT):
            await process.communicate()
