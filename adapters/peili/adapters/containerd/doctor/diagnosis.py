"""Runs all checks of the doctor, in an order in which what fails first should be fixed first."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from peili.adapters.containerd.doctor import config_checks, daemon_checks, mirror_checks, peer_checks
from peili.adapters.containerd.doctor.configuration import (
    DEFAULT_FILE,
    Configuration,
    InvalidConfiguration,
    read_configuration,
)
from peili.adapters.containerd.doctor.registry_settings import RegistrySettings, registry_settings
from peili.adapters.containerd.doctor.result import CheckResult, Level, as_root, fail, warn
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.mirror import PeerTLS, PullRights, Selection, StoreUnavailable
from peili.stores.containerd.api import ContainerdApi


@dataclass(frozen=True, slots=True)
class DoctorTarget:
    """The containerd and the peili that the doctor examines.

    Attributes:
        mirror: The URL of peili's local door, as containerd reaches it.
        ops: The URL of peili's status; None if it is at the local door.
        address: containerd's socket.
        namespaces: The namespaces that peili serves; empty for all.
        selection: The images that the mirror is for.
        rights: Whose images are given only to those who may pull them.
        content_path: Where this process finds containerd's content; None if containerd itself reports it.
        hosts_directories: The directories in which peili was configured to edit hosts.toml files.
        config: containerd's configuration file; None for the file with which it was started, or the default one.
        is_peer_door_closed: Whether the peer door refuses every other host.
        peer_tls: The TLS between peers; None for plain HTTP.
        store_kind: The kind of store that peili serves.
        resolver_kind: The kind of peili's resolver.
        door_tls: How to reach a local door with TLS; None for the system's certificate authorities.
    """

    mirror: str
    address: Path
    namespaces: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    rights: PullRights = field(default_factory=PullRights)
    content_path: Path | None = None
    hosts_directories: tuple[Path, ...] = ()
    config: Path | None = None
    is_peer_door_closed: bool = False
    peer_tls: PeerTLS | None = None
    store_kind: str = "containerd"
    resolver_kind: str = "defer"
    ops: str | None = None
    door_tls: ssl.SSLContext | None = None


async def diagnose(target: DoctorTarget) -> AsyncGenerator[CheckResult, None]:
    """Yield each result as soon as it is there. The doctor changes nothing.

    It takes some seconds at most, also if nothing answers.
    """
    if target.store_kind != "containerd":
        what = f"peili serves a store of kind {target.store_kind!r}, so it does not share what containerd pulls"
        yield warn("store", what, 'set store.kind = "containerd"')
    doors = [target.mirror, *([] if target.ops is None else [target.ops])]
    async with ContainerdApi(target.address) as api, mirror_checks.make_client(doors, target.door_tls) as client:
        version, result = await daemon_checks.check_containerd(api, target.address)
        yield result
        is_up = result.level is not Level.FAIL
        if is_up:
            yield await daemon_checks.check_content(api, target.content_path)
            for result in await daemon_checks.check_notifications(api, target.content_path):
                yield result
        files = _examine_files(target, version)
        for result in files.results:
            yield result
        if is_up:
            async for result in _check_daemon(api, target, files):
                yield result
        async for result in _check_mirror(client, api if is_up else None, target, files):
            yield result


@dataclass(slots=True)
class _Files:
    """What containerd's configuration and the hosts.toml files say.

    `configuration` and `settings` are None if they cannot be read.
    """

    process: daemon_checks.ContainerdProcess | None
    configuration: Configuration | None = None
    settings: RegistrySettings | None = None
    results: list[CheckResult] = field(default_factory=list[CheckResult])
    statuses: list[RegistryStatus] = field(default_factory=list[RegistryStatus])


def _examine_files(target: DoctorTarget, version: ContainerdVersion | None) -> _Files:
    """Read and check the files of a containerd of this `version`."""
    files = _Files(daemon_checks.find_process(target.address))
    started_with = files.process.config if files.process is not None else None
    if started_with is not None and target.config not in {None, started_with}:
        what = f"containerd was started with {started_with}, not with {target.config}"
        files.results.append(warn("configuration", what, f"give --containerd-config {started_with}"))
    base = files.process.working_directory if files.process is not None else Path("/")
    file = target.config or started_with or DEFAULT_FILE
    try:
        must_exist = target.config is not None or started_with is not None
        configuration = read_configuration(file, version, base) if must_exist or _may_exist(file) else Configuration()
    except InvalidConfiguration as error:
        files.results.append(fail("configuration", str(error), error.fix))
        return files
    assumed = version or ContainerdVersion(2 if configuration.format >= 3 else 1)
    settings = registry_settings(configuration, assumed)
    files.configuration, files.settings = configuration, settings
    files.results += config_checks.check_configuration(configuration, settings)
    if roots := [Path(each) for each in settings.directories]:
        files.results += _check_hosts(target, roots, assumed, files.statuses)
    return files


def _may_exist(file: Path) -> bool:
    """Return whether the file exists, or may exist because this process has no permission to see it."""
    try:
        return file.exists()
    except OSError:
        return True


def _check_hosts(
    target: DoctorTarget, roots: Sequence[Path], version: ContainerdVersion, statuses: list[RegistryStatus]
) -> list[CheckResult]:
    """Check the hosts.toml files, and append what they say to `statuses`."""
    try:
        statuses += registry_statuses(roots, target.mirror, version)
    except OSError as error:
        what = f"{error.filename}: {(error.strerror or '').lower()}"
        return [fail("hosts.toml", what, f"{as_root()}give this user access to it")]
    results = config_checks.check_hosts(
        statuses,
        target.mirror,
        roots,
        version=version,
        selection=target.selection,
        other_directories=target.hosts_directories,
    )
    about_tags = config_checks.check_tag_requests(statuses, target.mirror, roots, target.resolver_kind)
    return [*results, *about_tags]


async def _check_daemon(api: ContainerdApi, target: DoctorTarget, files: _Files) -> AsyncGenerator[CheckResult, None]:
    """Check the running containerd, and whether it runs with its files as they are now."""
    try:
        state = await daemon_checks.read_cri_state(api)
    except StoreUnavailable as error:
        what = f"containerd does not report whether it has loaded: {error}"
        yield warn("CRI plug-in", what, "see containerd's log")
        return
    has_cri = files.configuration is None or files.configuration.has_cri
    for result in daemon_checks.check_cri_has_loaded(state) if has_cri else ():
        yield result
    is_its_file = target.config is None or (files.process is not None and files.process.config == target.config)
    if files.configuration is not None and files.settings is not None and is_its_file:
        for result in daemon_checks.check_restart(state, files.process, files.configuration.files, files.settings):
            yield result
    for result in daemon_checks.check_namespaces(target.namespaces, state) if has_cri else ():
        yield result


async def _check_mirror(
    client: httpx.AsyncClient, api: ContainerdApi | None, target: DoctorTarget, files: _Files
) -> AsyncGenerator[CheckResult, None]:
    """Check that peili answers, and that other hosts can find it. `api` is None if containerd does not answer."""
    status, result = await mirror_checks.check_local_door(client, target.mirror, target.ops)
    yield result
    if status is None:
        return
    yield mirror_checks.check_readiness(status)
    urls = [*status.urls, *(url for peer in status.peers for url in peer["urls"])]
    async with peer_checks.make_peer_client(target.peer_tls) as peer_client, mirror_checks.make_client(urls) as plain:
        peers = peer_client if target.peer_tls is not None else plain
        async for result in peer_checks.check_peer_door(peers, status, is_closed=target.is_peer_door_closed):
            yield result
        async for result in peer_checks.check_peers(peers, status, time.time()):
            yield result
    yield mirror_checks.check_containerd_requests(status, time.time())
    for result in mirror_checks.check_credentials(target.mirror, files.statuses, target.rights):
        yield result
    if api is not None:
        try:
            images = await mirror_checks.stored_images(api, target.namespaces, target.selection)
        except StoreUnavailable as error:
            yield fail("request", str(error), "see containerd's log: it does not list its images")
        else:
            covered = [each for each in images if target.rights.coverage.covers(each[0].registry, each[0].repository)]
            others = [each for each in images if each not in covered]
            yield await mirror_checks.check_request(client, target.mirror, files.statuses, others)
            if target.rights.coverage:
                yield await mirror_checks.check_rights(client, target.mirror, covered)
