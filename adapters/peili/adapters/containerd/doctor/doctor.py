"""The doctor: says why a mirror would not be used and how to mend it.

What each look finds is judged beside: configured.py (files), daemon.py (containerd), doors.py (peili), way.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from peili.adapters.containerd.doctor import configured, daemon, doors, way
from peili.adapters.containerd.doctor.configuration import DEFAULT_FILE, Configuration, Unreadable, read
from peili.adapters.containerd.doctor.findings import Finding, Level, fail, warn
from peili.adapters.containerd.doctor.registries import Registries, registries
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.mirror import Selection, StoreUnavailable
from peili.stores.containerd.api import ContainerdApi


@dataclass(frozen=True, slots=True)
class Patient:
    """Whom to look at.

    Attributes:
        mirror: the URL of peili's local door, as containerd reaches it.
        address: containerd's socket.
        namespaces: those that peili serves; empty for all.
        selection: what the mirror is for.
        content_path: where this process finds containerd's content, where containerd does not say it.
        folders: where peili was told to put hosts.toml.
        config: containerd's configuration file; None: the one it was started with, or the usual one.
        closed: whether the peer door lets nobody in but this host.
        store: the kind of store that peili serves.
    """

    mirror: str
    address: Path
    namespaces: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    content_path: Path | None = None
    folders: tuple[Path, ...] = ()
    config: Path | None = None
    closed: bool = False
    store: str = "containerd"


async def diagnose(patient: Patient) -> AsyncGenerator[Finding, None]:
    """Each finding as it is made. Changes nothing; takes some seconds at most where nobody answers."""
    if patient.store != "containerd":
        what = f"peili serves a store of kind {patient.store!r}: what containerd has pulled is not shared"
        yield warn("store", what, 'set store.kind = "containerd"')
    async with ContainerdApi(patient.address) as api, doors.client() as http:
        version, finding = await daemon.answers(api, patient.address)
        yield finding
        there = finding.level is not Level.FAIL
        if there:
            yield await daemon.content(api, patient.content_path)
        look = _Look.at(patient, version)
        for finding in look.findings:
            yield finding
        if there:
            async for finding in _running(api, patient, look):
                yield finding
        async for finding in _mirror(http, api if there else None, patient, look):
            yield finding


@dataclass(slots=True)
class _Look:
    """What containerd's configuration and hosts.toml say. The first two are None where they can't be read."""

    begun: daemon.Started | None
    configuration: Configuration | None = None
    settings: Registries | None = None
    findings: list[Finding] = field(default_factory=list[Finding])
    shown: list[RegistryStatus] = field(default_factory=list[RegistryStatus])

    @classmethod
    def at(cls, patient: Patient, version: ContainerdVersion | None) -> _Look:
        """A look at the files of a containerd of that `version`."""
        look = cls(daemon.started(patient.address))
        began = look.begun.config if look.begun is not None else None
        if began is not None and patient.config not in {None, began}:
            what = f"containerd was started with {began}, not with {patient.config}"
            look.findings.append(warn("configuration", what, f"give --containerd-config {began}"))
        try:
            look._take(patient, version, patient.config or began or DEFAULT_FILE)
        except Unreadable as error:
            look.findings.append(fail("configuration", str(error), error.mend))
        return look

    def _take(self, patient: Patient, version: ContainerdVersion | None, file: Path) -> None:
        base = self.begun.working_directory if self.begun is not None else Path("/")
        given = patient.config is not None or (self.begun is not None and self.begun.config is not None)
        configuration = read(file, version, base) if given or _may_exist(file) else Configuration()
        known = version or ContainerdVersion(2 if configuration.version >= 3 else 1)
        settings = registries(configuration, known)
        self.configuration, self.settings = configuration, settings
        self.findings += configured.judge_configuration(configuration, settings)
        roots = [base / each for each in settings.folders]
        self.findings += _hosts_toml(patient, roots, known, self.shown) if roots else ()


def _may_exist(file: Path) -> bool:
    """Whether there is such a file, or one can't know."""
    try:
        return file.exists()
    except OSError:
        return True


async def _running(api: ContainerdApi, patient: Patient, look: _Look) -> AsyncGenerator[Finding, None]:
    """What the containerd that runs says of itself, and whether its files still say so."""
    try:
        now = await daemon.running(api)
    except StoreUnavailable as error:
        yield warn("CRI plug-in", f"containerd does not tell whether it has loaded: {error}", "see containerd's log")
        return
    on = look.configuration is None or configured.cri_is_on(look.configuration)
    for finding in daemon.loaded(now) if on else ():
        yield finding
    its_own = patient.config is None or (look.begun is not None and look.begun.config == patient.config)
    if look.configuration is not None and look.settings is not None and its_own:
        for finding in daemon.up_to_date(now, look.begun, look.configuration.files, look.settings):
            yield finding
    for finding in daemon.namespaces(patient.namespaces, now) if on else ():
        yield finding


async def _mirror(
    http: httpx.AsyncClient, api: ContainerdApi | None, patient: Patient, look: _Look
) -> AsyncGenerator[Finding, None]:
    """Whether peili answers, and others would find it; `api` is that of a containerd which answers."""
    status, finding = await doors.local_door(http, patient.mirror)
    yield finding
    if status is not None:
        yield doors.readiness(status)
        async for finding in doors.peer_door(http, status, closed=patient.closed):
            yield finding
        yield await doors.peers(http, status)
        yield doors.asked(status, time.time())
    if api is not None and status is not None:
        try:
            here = await way.images_here(api, patient.namespaces, patient.selection)
        except StoreUnavailable as error:
            yield fail("request", str(error), "see why containerd does not tell its images")
        else:
            yield await way.proved(http, patient.mirror, look.shown, here)


def _hosts_toml(
    patient: Patient, roots: Sequence[Path], version: ContainerdVersion, shown: list[RegistryStatus]
) -> list[Finding]:
    try:
        shown += registry_statuses(roots, patient.mirror, version)
    except OSError as error:
        mend = "run as root, or give this user access to it"
        return [fail("hosts.toml", f"{error.filename}: {(error.strerror or '').lower()}", mend)]
    wanted = patient.selection
    return list(
        configured.judge_hosts(shown, patient.mirror, roots, version=version, wanted=wanted, folders=patient.folders)
    )
