"""The doctor's look at containerd's configuration and at hosts.toml: would containerd ask the mirror at all?

Reads files only; each function judges one thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from peili.adapters.containerd.doctor.configuration import Configuration, as_table
from peili.adapters.containerd.doctor.findings import Finding, fail, ok, warn
from peili.adapters.containerd.doctor.generations import CRI_1, CRI_2, DOCKERS, IMAGES_3, RUNTIME_3, USUAL
from peili.adapters.containerd.doctor.registries import Registries
from peili.adapters.containerd.hosts_toml.model import DEFAULT, bracket_message
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.config_path import K3S_COMMAND, is_generated
from peili.mirror import Selection

_RESTART = "then restart containerd"
_FOR_K3S = f"run: {K3S_COMMAND}, then restart k3s or RKE2"
_CRI = {CRI_1, CRI_2, IMAGES_3, RUNTIME_3}
_DROP_INS = "/etc/containerd/conf.d/*.toml"
"""What containerd's default configuration imports from 2.2 on, whether or not there is any."""
_LAZY = ("stargz", "nydus", "overlaybd", "soci")
"""Snapshotters that mount images of their own format from the registry."""
_EAGER = {"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs", "aufs", "fuse-overlayfs"}
"""Those that are filled from layers which containerd keeps."""


def judge_configuration(configuration: Configuration, registries: Registries) -> Iterator[Finding]:
    """Everything about the configuration, in the order in which it would be mended."""
    yield from files(configuration)
    yield from switched_off(configuration)
    yield from config_path(registries, k3s=any(is_generated(each) for each in configuration.files))
    yield from inline_mirrors(registries)
    yield from transfer_service(registries)
    yield layers(registries)
    yield from snapshotters(registries)


def files(configuration: Configuration) -> Iterator[Finding]:
    """Which files count, and what gets lost between them."""
    if not configuration.files:
        yield warn("configuration", "containerd has no file, so it runs with its defaults", "see config_path below")
        return
    yield ok("configuration", ", then ".join(str(each) for each in configuration.files))
    for pattern in configuration.dead:
        if pattern != _DROP_INS:
            yield warn(
                "imports",
                f"{pattern} matches no file",
                "write imports as absolute paths: containerd 1.6 looks for relative ones with a * where it was started",
            )
    for plugin, file, by in configuration.hidden:
        if plugin in _CRI:
            yield warn(
                "imports",
                f'{by} replaces all of [plugins."{plugin}"] in {file}, as containerd 1.x merges imports',
                f"keep that plug-in's settings in {by} alone",
            )


def cri_is_on(configuration: Configuration) -> bool:
    """Whether the files leave the CRI plug-in on, by which Kubernetes pulls."""
    return not configuration.disabled


def switched_off(configuration: Configuration) -> Iterator[Finding]:
    """Docker's packages ship containerd without its CRI plug-in, which is the one that reads `config_path`."""
    if not cri_is_on(configuration):
        yield warn(
            "CRI plug-in",
            "switched off, so nothing that is said here of config_path counts; other clients name a folder themselves",
            f'for Kubernetes, take "{configuration.disabled[0]}" out of disabled_plugins, {_RESTART}',
        )


def config_path(registries: Registries, *, k3s: bool) -> Iterator[Finding]:
    """Whether hosts.toml is read. `k3s`: it writes the configuration, and sets it where registries.yaml has mirrors."""
    about = "config_path"
    for plugin, table, file in registries.misplaced:
        path = as_table(table.get("registry")).get("config_path")
        if path and path != registries.config_path:
            judge = warn if registries.folders else fail
            yield judge(
                about,
                f'set in [plugins."{plugin}"] of {file}, of which this containerd reads nothing',
                f"move it to {registries.registry_header}, {_RESTART}",
            )
    if not registries.folders:
        how = f'set config_path = "{USUAL}" in {registries.registry_header}, {_RESTART}'
        mend = _FOR_K3S if k3s else how
        yield fail(about, "not set, so containerd reads no hosts.toml and asks no mirror", mend)
        return
    origin = " (by default)" if registries.by_default else ""
    yield ok(about, f"{', then '.join(registries.folders)}{origin}")
    missing = [each for each in registries.folders if not Path(each).is_dir()]
    for each in missing if len(missing) == len(registries.folders) else ():
        if each != DOCKERS:
            yield fail(about, f"there is no directory {each}", _apply([Path(each)]))


def inline_mirrors(registries: Registries) -> Iterator[Finding]:
    """The old way, which excludes the new one."""
    if not registries.inline:
        return
    names = " and ".join(f"registry.{each}" for each in registries.inline)
    what = f"{names} set: containerd takes either these or config_path, and with both its CRI plug-in does not load"
    mend = f"move them into hosts.toml files, remove them from {registries.registry_header}, {_RESTART}"
    yield fail("mirrors", what, mend)


def transfer_service(registries: Registries) -> Iterator[Finding]:
    """containerd ≥ 2.1 hands pulls to it, with `config_path` as the name of one folder (containerd issue 12415)."""
    if not registries.transfer:
        return
    about = "transfer service"
    if registries.none_is_read:
        folder = next((each for each in registries.folders if Path(each).is_dir()), (*registries.folders, USUAL)[0])
        yield fail(
            about,
            f'it takes config_path = "{registries.config_path}" for one folder, so it reads no hosts.toml',
            f'set config_path = "{folder}" in {registries.registry_header}, {_RESTART}',
        )
    else:
        yield ok(about, "pulls go through it, with config_path")


def layers(registries: Registries) -> Finding:
    """Whether there will be anything to share."""
    key = "discard_unpacked_layers"
    if registries.discard:
        what = f"{key} = true: layers are dropped once they are unpacked, and nothing is left to share"
        return fail(key, what, f"set {key} = false in {registries.images_header}, {_RESTART}, and pull images anew")
    return ok(key, "false: layers are kept")


def snapshotters(registries: Registries) -> Iterator[Finding]:
    """Some never have the layers of an image, but mount it from the registry."""
    about = "snapshotter"
    for place, (name, address) in enumerate(registries.snapshotters.items()):
        whose = "" if place == 0 else ", of some runtimes"
        mend = f'set snapshotter = "overlayfs" in {registries.images_header}, {_RESTART}, and pull images anew'
        if any(each in name.lower() or each in (address or "").lower() for each in _LAZY):
            what = (
                f"{name}{whose}: images of its own format are mounted without their layers, so none are left to share"
            )
            yield fail(about, what, mend) if place == 0 else warn(about, what, mend)
        elif name not in _EAGER:
            what = f"{name}{whose}: whether layers are kept with it is not known, and only what is kept can be shared"
            yield warn(about, what, "see that layers are in `ctr -n k8s.io content ls` after a pull")


def judge_hosts(
    shown: Sequence[RegistryStatus],
    mirror: str,
    roots: Sequence[Path],
    *,
    version: ContainerdVersion,
    wanted: Selection,
    folders: Sequence[Path],
) -> Iterator[Finding]:
    """Whether hosts.toml leads to the mirror. `shown` is what a containerd of that `version` finds in `roots`; `wanted`
    is what the mirror is for; `folders` is where else a hosts.toml of its may be.
    """
    about = "hosts.toml"
    places = " and ".join(str(each) for each in roots)
    ours = [each for each in shown if not each.is_broken and any(host.leads_to(mirror) for host in each.hosts)]
    apply = _apply(roots)
    if "[" in mirror and not version.reads_brackets_in_headers:
        mend = "set local.listen to such a name, or to 127.0.0.1 and a port"
        yield fail(about, bracket_message(f'[host."{mirror}"]'), mend)
        return
    if not ours:
        yield _nobody(shown, mirror, roots, folders)
        return
    yield ok(about, f"{mirror} is asked for {', '.join(_named(each.registry) for each in ours)}")
    for each in ours:
        if not each.is_first:
            yield warn(about, f"{each.directory}: {mirror} is not the first host", f"move it up, or {apply}")
        if not any(host.leads_to(mirror) and "pull" in host.capabilities for host in each.hosts):
            yield fail(about, f"{each.directory}: {mirror} may not be asked for content", f'add "pull"; or {apply}')
    for each in shown:
        if each not in ours and wanted.has(each.registry):
            may = "may not" if each.is_uncertain else "does not"
            yield warn(about, f"{each.directory} {may} lead to {mirror}{_noted(each)}", apply)
    there = {each.registry for each in shown}
    for registry in sorted(wanted.registries - there) if DEFAULT not in there else ():
        if "*" not in registry:
            yield fail(about, f"none in {places} is for {registry}, so {mirror} is not asked", apply)


def _nobody(shown: Sequence[RegistryStatus], mirror: str, roots: Sequence[Path], folders: Sequence[Path]) -> Finding:
    """What is said where no hosts.toml leads to the mirror, or none of which that is known."""
    elsewhere = _elsewhere(mirror, [each for each in (*folders, Path(USUAL), Path(DOCKERS)) if each not in roots])
    where = f"; there is one in {elsewhere}, where containerd does not look" if elsewhere else ""
    notes = "".join(f"; {each.directory}{_noted(each)}" for each in shown if each.notes)
    what = f"none in {' and '.join(str(each) for each in roots)} leads to {mirror}{where}{notes}"
    if any(each.is_uncertain for each in shown):
        return warn("hosts.toml", f"maybe {what}", f"make it plain what that means, then {_apply(roots)}")
    return fail("hosts.toml", what, _apply(roots))


def _noted(shown: RegistryStatus) -> str:
    return f" ({'; '.join(shown.notes)})" if shown.notes else ""


def _apply(roots: Sequence[Path]) -> str:
    """The command that has peili in front there; k3s would undo any other change to what it generates."""
    if any(is_generated(each) for each in roots):
        return _FOR_K3S
    return "run: peili hosts apply " + " ".join(f"--config-path {each}" for each in roots)


def _elsewhere(mirror: str, folders: Sequence[Path]) -> Path | None:
    """The first of `folders` where a hosts.toml leads to the mirror."""
    for folder in folders:
        try:
            found = registry_statuses([folder], mirror, ContainerdVersion(is_known=False))
        except OSError:
            continue
        if any(host.leads_to(mirror) for each in found for host in each.hosts):
            return folder
    return None


def _named(registry: str) -> str:
    return "every other registry" if registry == DEFAULT else registry
