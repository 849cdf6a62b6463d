"""The containerd that runs: whether it answers, which version it is, with which configuration it was started, and
whether its content can be read."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from peili.adapters.containerd.doctor.findings import Finding, fail, ok, warn
from peili.adapters.containerd.doctor.registries import Registries
from peili.adapters.containerd.version import ContainerdVersion
from peili.mirror import StoreUnavailable
from peili.stores.containerd.api import ContainerdApi

_SO_PEERCRED_FORMAT = "3i"
_ROUNDED = 1.0
"""By how many seconds the kernel's time of boot may be off."""


KUBERNETES = "k8s.io"
"""The namespace into which the CRI plug-in pulls."""


@dataclass(frozen=True, slots=True)
class Started:
    """How a process of containerd's was started: the configuration file it was given, where, and when (Unix time)."""

    config: Path | None
    working_directory: Path
    at: float


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
        at = _began(process)
    except (OSError, ValueError, LookupError, StopIteration):  # the last ones: a /proc that is not Linux's own
        return None
    config = config_argument(arguments)
    return Started(None if config is None else directory / config, directory, at)


def _began(process: Path) -> float:
    """When a process of /proc was started, in Unix time, to a second. Raises OSError."""
    ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])  # starttime of proc(5), since boot
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def config_argument(arguments: list[str]) -> str | None:
    """What ``--config FILE``, ``--config=FILE`` and so on say, in Go's many ways to write a flag."""
    for place, argument in enumerate(arguments[1:], start=1):
        name, equals, value = argument.partition("=")
        if name in {"--config", "-config", "--c", "-c"}:
            return value if equals else next(iter(arguments[place + 1 :]), None)
    return None


async def answers(api: ContainerdApi, address: Path) -> tuple[ContainerdVersion | None, Finding]:
    """Whether containerd answers; its version, where that can be read."""
    try:
        text = await api.version()
    except StoreUnavailable as error:
        mend = "start containerd, or set store.address to its socket; and run the doctor as the user that peili runs as"
        return None, fail("containerd", str(error), mend)
    try:
        version = ContainerdVersion.parse(text)
    except ValueError:
        return None, warn("containerd", f"its version is {text!a}", "take one that is 1.6 or newer")
    return version, ok("containerd", f"{text} answers on {address}")


async def content(api: ContainerdApi, content_path: Path | None) -> Finding:
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


@dataclass(frozen=True, slots=True)
class Running:
    """What the running containerd tells of its CRI plug-in.

    Attributes:
        config_path, discard: what is in force; None where it does not tell, as before 2.4.
        failed: why the plug-in did not load; None where it did, or is switched off.
        has_images: whether there are images in Kubernetes' namespace.
    """

    config_path: str | None = None
    discard: bool | None = None
    failed: str | None = None
    has_images: bool = False


async def running(api: ContainerdApi) -> Running:
    """What it tells. Raises StoreUnavailable."""
    plugins = await api.plugins("type==io.containerd.grpc.v1,id==cri", "type==io.containerd.cri.v1")
    exports = {key: value for plugin in plugins for key, value in plugin.exports.items()}
    discard = exports.get("DiscardUnpackedLayers")
    return Running(
        config_path=exports.get("RegistryConfigPath"),
        discard=None if discard is None else discard == "true",
        failed=next((plugin.init_err.message for plugin in plugins if plugin.HasField("init_err")), None),
        has_images=KUBERNETES in await api.namespaces() and bool(await api.images(KUBERNETES)),
    )


def loaded(now: Running) -> Iterator[Finding]:
    """Whether the CRI plug-in that is switched on has loaded."""
    if now.failed is not None:
        mend = "fix that, then restart containerd; its log says more"
        yield fail("CRI plug-in", f"did not load, so Kubernetes can't pull: {now.failed}", mend)


def up_to_date(now: Running, begun: Started | None, files: Sequence[Path], settings: Registries) -> Iterator[Finding]:
    """Whether the containerd that runs has read the files as they are now."""
    about, mend = "restart", "restart containerd"
    if now.config_path is not None and now.config_path != settings.config_path:
        what = f'containerd runs with config_path = "{now.config_path}", which is not what its files say now'
        yield fail(about, what, mend)
    elif now.discard is not None and now.discard != settings.discard:
        what = f"containerd runs with discard_unpacked_layers = {str(now.discard).lower()}, unlike its files now"
        yield fail(about, what, mend)
    elif now.config_path is None and begun is not None:
        changed = [each for each in files if _changed(each) > begun.at + _ROUNDED]
        if changed:
            yield warn(about, f"{changed[0]} has changed since containerd was started, which reads it then only", mend)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0


def namespaces(served: Sequence[str], now: Running) -> Iterator[Finding]:
    """Whether peili serves what Kubernetes pulls. `served` are its namespaces, none for all."""
    if not served or KUBERNETES in served:
        return
    judge = fail if now.has_images else warn
    what = f"store.namespaces leaves out {KUBERNETES}, so what Kubernetes pulls is not shared"
    yield judge("namespaces", what, f'add "{KUBERNETES}" to store.namespaces')


_SHOW = "run peili as root, and in a container mount the directory at the same path, or set store.content_path"


async def _has_blobs(api: ContainerdApi) -> bool:
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
