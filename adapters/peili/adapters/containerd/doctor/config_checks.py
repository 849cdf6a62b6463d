"""Checks of containerd's configuration and of the hosts.toml files: would containerd use the mirror at all?

These checks only read files. Each function checks one thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from peili.adapters.containerd.doctor.configuration import (
    CONTAINERD_DIRECTORY,
    CRI_1,
    CRI_2,
    DOCKER_DIRECTORY,
    IMAGES_3,
    RUNTIME_3,
    Configuration,
    as_table,
)
from peili.adapters.containerd.doctor.registry_settings import RegistrySettings
from peili.adapters.containerd.doctor.result import CheckResult, fail, ok, warn
from peili.adapters.containerd.hosts_toml.model import DEFAULT, bracket_message
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.config_path import K3S_COMMAND, is_generated
from peili.mirror import Selection

_RESTART = "then restart containerd"
_PULL_AGAIN = f"{_RESTART} and pull the images again"
_K3S_FIX = f"run: {K3S_COMMAND}, then restart k3s or RKE2"
_CRI = {CRI_1, CRI_2, IMAGES_3, RUNTIME_3}
_DEFAULT_IMPORT = "/etc/containerd/conf.d/*.toml"
"""What the default configuration of containerd 2.2 and later imports, whether or not there is such a file."""
_DEFER = "defer"
"""The kind of resolver that leaves all tags to the registry."""
_LAZY = ("stargz", "nydus", "overlaybd", "soci")
"""Snapshotters that mount images of their own format from the registry."""
_EAGER = {"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs", "aufs", "fuse-overlayfs"}
"""Snapshotters that unpack layers which containerd keeps."""


def check_configuration(configuration: Configuration, settings: RegistrySettings) -> Iterator[CheckResult]:
    """Run all checks of the configuration, in the order in which problems should be fixed."""
    yield from check_files(configuration)
    yield from check_cri_is_on(configuration)
    lacks_version = configuration.format == 1 and settings.registry_header.startswith("[plugins.cri.")
    yield from check_config_path(
        settings, is_k3s=any(is_generated(each) for each in configuration.files), lacks_version=lacks_version
    )
    yield from check_conflicts(settings)
    yield from check_transfer_service(settings)
    yield check_layers_are_kept(settings)
    yield from check_snapshotters(settings)


def check_files(configuration: Configuration) -> Iterator[CheckResult]:
    """Report which files count, and which imports have no effect."""
    if not configuration.files:
        what = "containerd has no configuration file, so it runs with its defaults"
        yield warn("configuration", what, "see config_path below")
        return
    yield ok("configuration", ", then ".join(str(each) for each in configuration.files))
    for pattern in configuration.unmatched_imports:
        if pattern != _DEFAULT_IMPORT:
            fix = "write imports as absolute paths: containerd 1.6 resolves a relative pattern where it was started"
            yield warn("imports", f"{pattern} matches no file", fix)
    for plugin, file, by in configuration.replaced:
        if plugin in _CRI:
            what = f'{by} replaces all of [plugins."{plugin}"] in {file}: containerd 1.x does not merge imported tables'
            yield warn("imports", what, f"keep that plug-in's settings in {by} only")


def check_cri_is_on(configuration: Configuration) -> Iterator[CheckResult]:
    """Check that the CRI plug-in is on, which Docker's packages of containerd switch off: it reads `config_path`."""
    if not configuration.has_cri:
        what = "switched off, so config_path has no effect; clients other than Kubernetes name a directory themselves"
        fix = f'for Kubernetes, remove "{configuration.disabled[0]}" from disabled_plugins, {_RESTART}'
        yield warn("CRI plug-in", what, fix)


def check_config_path(
    settings: RegistrySettings, *, is_k3s: bool, lacks_version: bool = False
) -> Iterator[CheckResult]:
    """Check that containerd reads hosts.toml files.

    Args:
        settings: The settings in force.
        is_k3s: Whether k3s generates the configuration. It sets `config_path` if registries.yaml has mirrors.
        lacks_version: Whether containerd 1.x takes the files for version 1, because they have no ``version = 2``.
    """
    about = "config_path"
    for plugin, table, file in settings.ignored:
        path = as_table(table.get("registry")).get("config_path")
        if path and path != settings.config_path:
            result = warn if settings.directories else fail
            if lacks_version and plugin == CRI_2:
                what = f'{file} has no version = 2, so containerd ignores [plugins."{plugin}"] in it'
                yield result(about, what, f"set version = 2 at the beginning of {file}, {_RESTART}")
                if not settings.directories:
                    return
                continue
            what = f'set in [plugins."{plugin}"] of {file}, which this containerd ignores'
            yield result(about, what, f"move it to {settings.registry_header}, {_RESTART}")
    if not settings.directories:
        fix = f'set config_path = "{CONTAINERD_DIRECTORY}" in {settings.registry_header}, {_RESTART}'
        what = "not set, so containerd reads no hosts.toml and uses no mirror"
        yield fail(about, what, _K3S_FIX if is_k3s else fix)
        return
    names = ", then ".join(settings.directories) + (" (by default)" if settings.is_default else "")
    if any(Path(each).is_dir() for each in settings.directories):
        yield ok(about, names)
        return
    for each in [each for each in settings.directories if each != DOCKER_DIRECTORY] or settings.directories:
        yield fail(about, f"the directory {each} does not exist", _apply_command([Path(each)]))


def check_conflicts(settings: RegistrySettings) -> Iterator[CheckResult]:
    """Check that there are no settings with which `config_path` keeps the CRI plug-in from loading."""
    if settings.conflicting:
        names = " and ".join(f"registry.{each}" for each in settings.conflicting)
        what = f"{names} set: containerd accepts either these or config_path; with both, its CRI plug-in does not load"
        fix = f"move them into hosts.toml files, remove them from {settings.registry_header}, {_RESTART}"
        yield fail("mirrors", what, fix)


def check_transfer_service(settings: RegistrySettings) -> Iterator[CheckResult]:
    """Check what the transfer service of containerd 2.1 and later makes of `config_path` (containerd issue 12415)."""
    if not settings.uses_transfer_service:
        return
    about = "transfer service"
    if settings.is_config_path_misread:
        existing = (each for each in settings.directories if Path(each).is_dir())
        directory = next(existing, (*settings.directories, CONTAINERD_DIRECTORY)[0])
        what = f'it takes config_path = "{settings.config_path}" for one directory, so it reads no hosts.toml'
        yield fail(about, what, f'set config_path = "{directory}" in {settings.registry_header}, {_RESTART}')
    else:
        yield ok(about, "pulls go through it, and it uses config_path")


def check_layers_are_kept(settings: RegistrySettings) -> CheckResult:
    """Check that containerd keeps layers, because only these can be shared."""
    key = "discard_unpacked_layers"
    if settings.discards_layers:
        what = f"{key} = true: containerd drops layers after it unpacked them, so there is nothing to share"
        return fail(key, what, f"set {key} = false in {settings.images_header}, {_PULL_AGAIN}")
    return ok(key, "false: containerd keeps layers")


def check_snapshotters(settings: RegistrySettings) -> Iterator[CheckResult]:
    """Check that no snapshotter mounts images from the registry without storing their layers."""
    about = "snapshotter"
    for position, (name, address) in enumerate(settings.snapshotters.items()):
        snapshotter = name if position == 0 else f"{name}, for some runtimes"
        if any(each in name.lower() or each in (address or "").lower() for each in _LAZY):
            what = f"{snapshotter}: it mounts images of its own format without their layers, so there is none to share"
            fix = f'set snapshotter = "overlayfs" in {settings.images_header}, {_PULL_AGAIN}'
            yield fail(about, what, fix) if position == 0 else warn(about, what, fix)
        elif name not in _EAGER:
            what = f"{snapshotter}: it is not known whether containerd keeps layers, and only those can be shared"
            yield warn(about, what, "pull an image, and check that `ctr -n k8s.io content ls` lists its layers")


def check_hosts(
    statuses: Sequence[RegistryStatus],
    mirror: str,
    roots: Sequence[Path],
    *,
    version: ContainerdVersion,
    selection: Selection,
    other_directories: Sequence[Path],
) -> Iterator[CheckResult]:
    """Check that the hosts.toml files lead to the mirror.

    Args:
        statuses: What containerd finds in `roots`.
        mirror: The URL of peili's local door.
        roots: The directories of `config_path`.
        version: The version of containerd.
        selection: The registries that the mirror is for.
        other_directories: Where else peili's hosts.toml files may be.
    """
    about = "hosts.toml"
    apply = _apply_command(roots)
    if "[" in mirror and not version.reads_brackets_in_headers:
        fix = "set local.listen to a host name, or to 127.0.0.1 and a port"
        yield fail(about, bracket_message(f'[host."{mirror}"]'), fix)
        return
    ours = [each for each in statuses if not each.is_broken and any(host.leads_to(mirror) for host in each.hosts)]
    if not ours:
        yield _not_used(statuses, mirror, roots, other_directories)
        return
    names = ("every other registry" if each.registry == DEFAULT else each.registry for each in ours)
    yield ok(about, f"containerd uses {mirror} for {', '.join(names)}")
    for each in ours:
        if not each.is_first:
            yield warn(about, f"{each.directory}: {mirror} is not the first host", f"move it up, or {apply}")
        if not any(host.leads_to(mirror) and "pull" in host.capabilities for host in each.hosts):
            what = f'{each.directory}: {mirror} does not have the capability "pull"'
            yield fail(about, what, f"add it, or {apply}")
    for each in statuses:
        if each not in ours and selection.has(each.registry):
            may = "may not" if each.is_uncertain else "does not"
            yield warn(about, f"{each.directory} {may} lead to {mirror}{_notes(each)}", apply)
    configured = {each.registry for each in statuses}
    for registry in sorted(selection.registries - configured) if DEFAULT not in configured else ():
        if "*" not in registry:
            what = f"there is none for {registry} in {_joined(roots)}, so containerd does not use {mirror} for it"
            yield fail(about, what, apply)


def check_tag_requests(
    statuses: Sequence[RegistryStatus], mirror: str, roots: Sequence[Path], resolver: str
) -> Iterator[CheckResult]:
    """Check that containerd asks the mirror what a tag means, if the mirror can say that, and only then.

    Args:
        statuses: What containerd finds in `roots`.
        mirror: The URL of peili's local door.
        roots: The directories of `config_path`.
        resolver: The kind of peili's resolver.
    """
    about, apply = "hosts.toml", _apply_command(roots)
    is_generated_file = any(is_generated(each) for each in roots)  # k3s always writes both capabilities
    for each in statuses:
        ours = [host for host in each.hosts if host.leads_to(mirror)]
        asks = any("resolve" in host.capabilities for host in ours)
        if not ours or each.is_broken:
            continue
        if resolver != _DEFER and not asks:
            what = (
                f'{each.directory}: {mirror} does not have the capability "resolve", so containerd asks it for no tag'
            )
            yield warn(about, f"{what}, and the resolver {resolver} has no effect", f"add it, or {apply}")
        elif resolver == _DEFER and asks and not is_generated_file:
            what = f'{each.directory}: {mirror} has the capability "resolve", but the resolver {_DEFER} answers no tag'
            yield warn(about, f"{what}: containerd asks it in vain", f"remove it, or {apply}")


def _not_used(
    statuses: Sequence[RegistryStatus], mirror: str, roots: Sequence[Path], other_directories: Sequence[Path]
) -> CheckResult:
    """Return the result if no hosts.toml certainly leads to the mirror."""
    candidates = (*other_directories, Path(CONTAINERD_DIRECTORY), Path(DOCKER_DIRECTORY))
    elsewhere = _directory_with(mirror, [each for each in candidates if each not in roots])
    hint = f"; there is one in {elsewhere}, where containerd does not look" if elsewhere else ""
    notes = "".join(f"; {each.directory}{_notes(each)}" for each in statuses if each.notes)
    what = f"none in {_joined(roots)} leads to {mirror}{hint}{notes}"
    if any(each.is_uncertain for each in statuses):
        return warn("hosts.toml", f"possibly {what}", f"correct what is not certain, then {_apply_command(roots)}")
    return fail("hosts.toml", what, _apply_command(roots))


def _notes(status: RegistryStatus) -> str:
    return f" ({'; '.join(status.notes)})" if status.notes else ""


def _joined(roots: Sequence[Path]) -> str:
    return " and ".join(str(each) for each in roots)


def _apply_command(roots: Sequence[Path]) -> str:
    """Return the command that puts peili in front there. k3s would undo any other change of what it generates."""
    if any(is_generated(each) for each in roots):
        return _K3S_FIX
    return "run: peili hosts apply " + " ".join(f"--config-path {each}" for each in roots)


def _directory_with(mirror: str, directories: Sequence[Path]) -> Path | None:
    """Return the first directory in which a hosts.toml leads to the mirror."""
    for directory in directories:
        try:
            statuses = registry_statuses([directory], mirror, ContainerdVersion(is_known=False))
        except OSError:
            continue
        if any(host.leads_to(mirror) for each in statuses for host in each.hosts):
            return directory
    return None
