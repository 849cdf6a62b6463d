"""The containerd that runs: whether it answers, which version it is, with which configuration it was started, and
whether its content can be read."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from peili.adapters.containerd.findings import Finding, fail, ok, warn
from peili.adapters.containerd.meaning import Version
from peili.mirror import StoreUnavailable
from peili.stores.containerd.api import Api

_SO_PEERCRED_FORMAT = "3i"


@dataclass(frozen=True, slots=True)
class Started:
    """How a process of containerd's was started: the configuration file it was given, and where."""

    config: Path | None
    working_directory: Path


def started(address: Path) -> Started | None:
    """How whoever listens at the unix socket was started; None where this process may not know."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(address))
            size = struct.calcsize(_SO_PEERCRED_FORMAT)
            pid, _, _ = struct.unpack(
                _SO_PEERCRED_FORMAT, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            )
        process = Path("/proc", str(pid))
        arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        directory = (process / "cwd").readlink()
    except OSError:
        return None
    config = config_argument(arguments)
    return Started(None if config is None else directory / config, directory)


def config_argument(arguments: list[str]) -> str | None:
    """What ``--config FILE``, ``--config=FILE`` and so on say, in Go's many ways to write a flag."""
    for place, argument in enumerate(arguments[1:], start=1):
        name, equals, value = argument.partition("=")
        if name in {"--config", "-config", "--c", "-c"}:
            return value if equals else next(iter(arguments[place + 1 :]), None)
    return None


async def answers(api: Api, address: Path) -> tuple[Version | None, Finding]:
    """Whether containerd answers; its version, where that can be read."""
    try:
        text = await api.version()
    except StoreUnavailable as error:
        mend = "start containerd, or set store.address to its socket; and run the doctor as the user that peili runs as"
        return None, fail("containerd", str(error), mend)
    try:
        version = Version.parse(text)
    except ValueError:
        return None, warn("containerd", f"its version is {text!a}", "take one that is 1.6 or newer")
    return version, ok("containerd", f"{text} answers on {address}")


async def content(api: Api, content_path: Path | None) -> Finding:
    """Whether its content can be read as files."""
    about = "content"
    root = content_path or await api.content_root()
    if root is None:
        return warn(about, "containerd does not say where it is, so it is read through its API, slowly", _SHOW)
    try:
        for blob in _some(root):
            with blob.open("rb"):
                pass
    except OSError as error:
        if content_path is None and not root.exists() and not await _has_blobs(api):
            return ok(
                about, f"{root} is not there yet: containerd makes it with its first blob, and peili then uses it"
            )
        reason = (error.strerror or str(error)).lower()
        return warn(about, f"{error.filename}: {reason}, so it is read through containerd's API, slowly", _SHOW)
    return ok(about, f"is read from {root}")


_SHOW = "run peili as root, and in a container mount the directory at the same path, or set store.content_path"


async def _has_blobs(api: Api) -> bool:
    for namespace in await api.namespaces():
        async with aclosing(api.blobs(namespace)) as blobs:
            async for _ in blobs:
                return True
    return False


def _some(root: Path) -> Iterator[Path]:
    """The first blob, if there is one. Raises OSError."""
    blobs = root / "blobs"
    if blobs.is_dir() or next(iter(root.iterdir()), None) is not None:
        for algorithm in blobs.iterdir():
            yield from list(algorithm.iterdir())[:1]
