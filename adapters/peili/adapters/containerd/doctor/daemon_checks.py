"""Checks of the running containerd: does it answer, does it use its present files, and can peili read its content?

This module also finds out how the process was started.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from peili.adapters.containerd.doctor.config_checks import check_transfer_service
from peili.adapters.containerd.doctor.configuration import (
    DEFAULT_FILE,
    Configuration,
    InvalidConfiguration,
    read_configuration,
)
from peili.adapters.containerd.doctor.registry_settings import RegistrySettings, registry_settings
from peili.adapters.containerd.doctor.result import CheckResult, Level, as_root, fail, ok, warn
from peili.adapters.containerd.version import ContainerdVersion
from peili.mirror import StoreUnavailable
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.inotify import reached_limits

KUBERNETES_NAMESPACE = "k8s.io"
"""The namespace into which the CRI plug-in pulls."""

_SO_PEERCRED_FORMAT = "3i"
_SOCKET_TIMEOUT = 5.0
_BOOT_TIME_ERROR = 1.0
"""By how many seconds the kernel's boot time may be wrong."""


@dataclass(frozen=True, slots=True)
class ContainerdProcess:
    """How a containerd was started.

    Attributes:
        config: The configuration file on its command line; None if there is none.
        working_directory: The directory in which it was started.
        started_at: When it was started, in seconds since 1970.
    """

    config: Path | None
    working_directory: Path
    started_at: float


def find_process(address: Path) -> ContainerdProcess | None:
    """Return how the process that listens on a unix socket was started; None if this process cannot find out."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SOCKET_TIMEOUT)
            connection.connect(str(address))
            size = struct.calcsize(_SO_PEERCRED_FORMAT)
            pid, _, _ = struct.unpack(
                _SO_PEERCRED_FORMAT, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            )
        process = Path("/proc", str(pid))
        arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        directory = (process / "cwd").readlink()
        started_at = _start_time(process)
    except (OSError, ValueError, LookupError, StopIteration):  # the last ones: a /proc that is not Linux's own
        return None
    config = config_argument(arguments)
    return ContainerdProcess(None if config is None else directory / config, directory, started_at)


def _start_time(process: Path) -> float:
    """Return when a process of /proc was started, in seconds since 1970, to a second. Raises OSError."""
    ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])  # starttime of proc(5), since boot
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def config_argument(arguments: list[str]) -> str | None:
    """Return the value of ``--config FILE``, ``-c=FILE`` and the other forms that Go accepts for a flag."""
    for position, argument in enumerate(arguments[1:], start=1):
        name, equals, value = argument.partition("=")
        if name in {"--config", "-config", "--c", "-c"}:
            return value if equals else next(iter(arguments[position + 1 :]), None)
    return None


def kubernetes_warning(version: str | None, socket: Path) -> str | None:
    """Say why pulls of Kubernetes ignore hosts.toml, and how to fix that, in one line.

    In the default configuration of containerd 2.2 and later they do. This function reads the configuration, so it
    blocks.

    Args:
        version: The version of containerd, if it is known.
        socket: The socket of that containerd, if it runs.

    Returns:
        None if they read hosts.toml, or if that cannot be found out.
    """
    try:
        parsed = ContainerdVersion.parse(version or "")
    except ValueError:
        return None
    process = find_process(socket)
    file = (process.config if process is not None else None) or DEFAULT_FILE
    base = process.working_directory if process is not None else Path("/")
    try:
        configuration = read_configuration(file, parsed, base) if file.exists() else Configuration()
    except (InvalidConfiguration, OSError):
        return None
    for result in check_transfer_service(registry_settings(configuration, parsed)):
        if result.level is Level.FAIL:
            what = f"containerd {version} ignores hosts.toml for Kubernetes"
            return f"{what}: its transfer service takes several directories for one; {result.fix}"
    return None


async def check_containerd(api: ContainerdApi, address: Path) -> tuple[ContainerdVersion | None, CheckResult]:
    """Check that containerd answers. Return its version, if that can be parsed, and the result."""
    about = "containerd"
    try:
        text = await api.version()
    except StoreUnavailable as error:
        fix = "start containerd, or set store.address to its socket; run the doctor as the user that runs peili"
        return None, fail(about, str(error), fix)
    try:
        version = ContainerdVersion.parse(text)
    except ValueError:
        return None, warn(about, f"its version is {text!a}", "use containerd 1.6 or newer")
    return version, ok(about, f"{text} answers on {address}")


async def check_content(api: ContainerdApi, content_path: Path | None) -> CheckResult:
    """Check that peili can read containerd's content as files."""
    about = "content"
    fix = f"{as_root()}mount the directory into peili's container at the same path, or set store.content_path"
    root = content_path or await api.content_root()
    if root is None:
        what = "containerd does not say where its content is, so peili reads it through its API, which is slow"
        return warn(about, what, fix)
    blobs = root / "blobs"
    try:
        if blobs.is_dir() or next(root.iterdir(), None) is not None:  # a new content store is empty
            for algorithm in blobs.iterdir():
                for blob in list(algorithm.iterdir())[:1]:
                    with blob.open("rb"):
                        pass
    except OSError as error:
        is_new = isinstance(error, FileNotFoundError) and (content_path is None or root.exists())
        if is_new and not await _has_blobs(api):
            what = f"{blobs} does not exist yet: containerd creates it with its first blob, and peili then uses it"
            return ok(about, what)
        reason = (error.strerror or str(error)).lower()
        what = f"{error.filename}: {reason}, so peili reads it through containerd's API, which is slow"
        return warn(about, what, fix)
    return ok(about, f"peili reads it from {root}")


async def check_notifications(api: ContainerdApi, content_path: Path | None) -> Sequence[CheckResult]:
    """Check that the system can tell peili when containerd's content changes."""
    root = content_path or await api.content_root()
    return () if root is None else [warn("inotify", each.cost, each.fix) for each in reached_limits(root)]


async def _has_blobs(api: ContainerdApi) -> bool:
    for namespace in await api.namespaces():
        async with aclosing(api.blobs(namespace)) as blobs:
            async for _ in blobs:
                return True
    return False


@dataclass(frozen=True, slots=True)
class CriState:
    """What a running containerd reports of its CRI plug-in.

    Attributes:
        config_path: The setting in force; None if containerd does not report it, as before 2.4.
        discards_layers: The same for `discard_unpacked_layers`.
        error: Why the plug-in did not load; None if it did, or is switched off.
        has_images: Whether there are images in the namespace of Kubernetes.
    """

    config_path: str | None = None
    discards_layers: bool | None = None
    error: str | None = None
    has_images: bool = False


async def read_cri_state(api: ContainerdApi) -> CriState:
    """Return what containerd reports. Raises StoreUnavailable."""
    plugins = await api.plugins("type==io.containerd.grpc.v1,id==cri", "type==io.containerd.cri.v1")
    exports = {key: value for plugin in plugins for key, value in plugin.exports.items()}
    discards = exports.get("DiscardUnpackedLayers")
    namespace = KUBERNETES_NAMESPACE
    return CriState(
        config_path=exports.get("RegistryConfigPath"),
        discards_layers=None if discards is None else discards == "true",
        error=next((plugin.init_err.message for plugin in plugins if plugin.HasField("init_err")), None),
        has_images=namespace in await api.namespaces() and bool(await api.images(namespace)),
    )


def check_cri_has_loaded(state: CriState) -> Iterator[CheckResult]:
    """Check that the CRI plug-in, which is switched on, has loaded."""
    if state.error is not None:
        fix = "fix that, then restart containerd; see its log for more"
        yield fail("CRI plug-in", f"did not load, so Kubernetes cannot pull: {state.error}", fix)


def check_restart(
    state: CriState, process: ContainerdProcess | None, files: Sequence[Path], settings: RegistrySettings
) -> Iterator[CheckResult]:
    """Check that the running containerd has read its configuration files as they are now.

    Args:
        state: What containerd reports.
        process: How it was started; None if that is not known.
        files: Its configuration files.
        settings: What the files say now.
    """
    about, fix = "restart", "restart containerd"
    if state.config_path is not None and state.config_path != settings.config_path:
        what = f'containerd runs with config_path = "{state.config_path}", but its files now have another value'
        yield fail(about, what, fix)
    elif state.discards_layers is not None and state.discards_layers != settings.discards_layers:
        value = str(state.discards_layers).lower()
        what = f"containerd runs with discard_unpacked_layers = {value}, but its files now have another value"
        yield fail(about, what, fix)
    elif state.config_path is None and process is not None:
        changed: list[Path] = []
        for each in files:
            with suppress(OSError):
                if each.stat().st_mtime > process.started_at + _BOOT_TIME_ERROR:
                    changed.append(each)
        if changed:
            what = f"{changed[0]} has changed since containerd was started, and containerd reads it only at its start"
            yield warn(about, what, fix)


def check_namespaces(served: Sequence[str], state: CriState) -> Iterator[CheckResult]:
    """Check that peili serves what Kubernetes pulls; `served` are peili's namespaces, or none for all."""
    if not served or KUBERNETES_NAMESPACE in served:
        return
    result = fail if state.has_images else warn
    what = f"store.namespaces does not include {KUBERNETES_NAMESPACE}, so peili does not share what Kubernetes pulls"
    yield result("namespaces", what, f'add "{KUBERNETES_NAMESPACE}" to store.namespaces')
