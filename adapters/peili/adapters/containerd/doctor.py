"""The doctor: says why a mirror would not be used and how to mend it.

What each look finds is judged beside: configured.py (files), daemon.py (containerd), doors.py (peili), way.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peili.adapters.containerd import configured, daemon, doors, showing, way
from peili.adapters.containerd.configuration import DEFAULT_FILE, Configuration, Unreadable, read
from peili.adapters.containerd.findings import Finding, Level, fail, warn
from peili.adapters.containerd.meaning import Version
from peili.adapters.containerd.registries import registries
from peili.adapters.containerd.showing import Shown
from peili.mirror import Selection, StoreUnavailable
from peili.stores.containerd.api import Api


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
    async with Api(patient.address) as api, doors.client() as http:
        version, finding = await daemon.answers(api, patient.address)
        yield finding
        there = finding.level is not Level.FAIL
        if there:
            yield await daemon.content(api, patient.content_path)
        shown: list[Shown] = []
        for finding in _files(patient, version, shown):
            yield finding
        status, finding = await doors.local_door(http, patient.mirror)
        yield finding
        if status is not None:
            yield doors.readiness(status)
            async for finding in doors.peer_door(http, status, closed=patient.closed):
                yield finding
            yield await doors.peers(http, status)
            yield doors.asked(status, time.time())
        if there and status is not None:
            try:
                here = await way.images_here(api, patient.namespaces, patient.selection)
            except StoreUnavailable as error:
                yield fail("request", str(error), "see why containerd does not tell its images")
            else:
                yield await way.proved(http, patient.mirror, shown, here)


def _files(patient: Patient, version: Version | None, shown: list[Shown]) -> list[Finding]:
    """What containerd's configuration and hosts.toml say; the latter is put into `shown`."""
    begun = daemon.started(patient.address)
    findings: list[Finding] = []
    file = patient.config or (begun and begun.config) or DEFAULT_FILE
    if begun is not None and begun.config is not None and patient.config not in {None, begun.config}:
        what = f"containerd was started with {begun.config}, not with {patient.config}"
        findings.append(warn("configuration", what, f"give --containerd-config {begun.config}"))
    try:
        configuration = _read(file, version, begun, needed=patient.config is not None)
    except Unreadable as error:
        mend = "run as root, or give --containerd-config FILE; in a container mount it at the same path"
        return [*findings, fail("configuration", str(error), mend)]
    known = version or Version(2 if configuration.version >= 3 else 1)
    settings = registries(configuration, known)
    findings += configured.judge_configuration(configuration, settings)
    return [*findings, *(_hosts_toml(patient, settings.folders, known, shown) if settings.folders else ())]


def _hosts_toml(patient: Patient, folders: Sequence[str], version: Version, shown: list[Shown]) -> list[Finding]:
    roots = [Path(each).absolute() for each in folders]
    try:
        shown += showing.shown(roots, patient.mirror, version)
    except OSError as error:
        mend = "run as root, or give this user access to it"
        return [fail("hosts.toml", f"{error.filename}: {(error.strerror or '').lower()}", mend)]
    wanted = patient.selection.registries
    return list(configured.judge_hosts(shown, patient.mirror, roots, wanted=wanted, folders=patient.folders))


def _read(file: Path, version: Version | None, begun: daemon.Started | None, *, needed: bool) -> Configuration:
    if not needed and not file.exists() and (begun is None or begun.config is None):
        return Configuration()
    return read(file, version, begun.working_directory if begun is not None else Path("/"))
