"""What has to hold for any content of a file that peili edits, whether or not it is what the file should be.

Each function gives what does not hold, one line each, and lets exceptions through: there shall be none.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

from peili.adapters.containerd import HostsFiles
from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.yaml_text import NotYaml, plain
from peili.adapters.k3s import RegistriesFile
from peili.adapters.talos import (
    InvalidMachineConfig,
    MachineConfig,
    merge_patch,
    parse_config,
    patch_to_apply,
    patch_to_remove,
)

MIRROR = "http://127.0.0.1:5050"
OURS = b"peili hosts"
"""In the marks of a hosts.toml."""
_MARK = b"added by peili"
"""In those of a registries.yaml."""

VERSIONS = (None, "1.6.20", "1.7.24", "2.1.4", "2.4.2")


def faults_of_hosts(data: bytes, folder: Path, version: str | None, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """`data` as a registry's hosts.toml below `folder`, which is this function's own."""
    file = folder / "r.example/hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    hosts = HostsFiles(MIRROR, config_path=[folder], registries=registries, version=version)
    json.dumps([each.json() for each in hosts.show()])
    would = hosts.apply(dry_run=True)
    if file.read_bytes() != data:
        yield "a dry run changed it"
    done = hosts.apply()
    after = file.read_bytes()
    if done.changes != would.changes:
        yield f"apply did something else than it said: {would}, then {done}"
    if any(file == each.path for each in done.problems) and after != data:
        yield f"it was left alone, and changed: {done.problems}"
    if _is_toml(data) and not _is_toml(after):
        yield f"it was TOML, and is none: {after!r}"
    if again := hosts.apply().changes:
        yield f"apply twice: {again}"
    json.dumps([*map(str, hosts.show())])
    hosts.remove()
    if OURS not in data and file.read_bytes() != data:
        yield f"remove left {file.read_bytes()!r}"
    if (folder / "_default").exists():
        yield "remove left a folder"


def faults_of_registries(data: bytes, folder: Path, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """`data` as a registries.yaml in `folder`, which is this function's own."""
    file = folder / "registries.yaml"
    file.write_bytes(data)
    subject = RegistriesFile(MIRROR, file=file, registries=registries)
    _show(subject, folder)
    done = subject.apply()
    after = file.read_bytes()
    if done.problems and after != data:
        yield f"it was left alone, and changed: {done.problems}"
    if _is_yaml(data) and not _is_yaml(after):
        yield f"it was YAML, and is none: {after!r}"
    if again := subject.apply().changes:
        yield f"apply twice: {again}"
    _show(subject, folder)
    RegistriesFile(MIRROR, file=file).remove()
    left = file.read_bytes() if file.exists() else None
    if _MARK not in data and left != data:
        yield f"remove left {left!r}"


def _show(subject: RegistriesFile, folder: Path) -> None:
    try:
        json.dumps([each.json() for each in subject.show(data_dir=folder)])
    except CannotEdit as error:
        str(error)


def faults_of_talos(data: bytes, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """`data` as a machine configuration of Talos; and what peili prints for it, as one."""
    config = _config(data)
    if config is None:
        return
    try:
        patch = patch_to_apply(config, MIRROR, registries)
        removal = patch_to_remove(config, MIRROR, registries)
    except InvalidMachineConfig:
        return
    for text in (patch.text, removal.text):
        if (printed := _config(text.encode())) is not None:
            try:
                patch_to_apply(printed, MIRROR, registries)
                patch_to_remove(printed, MIRROR, registries)
            except InvalidMachineConfig:
                continue
    now = merge_patch(config, patch.text)
    if {name: now[name] for name in (each.registry for each in patch.mirrors)} != {
        each.registry: each for each in patch.mirrors
    }:
        yield f"the patch does not say what it should: {patch.text!r}"
    if again := patch_to_apply(MachineConfig(new=now), MIRROR, registries).mirrors:
        yield f"apply twice: {again}"


def _config(data: bytes) -> MachineConfig | None:
    try:
        return parse_config(data.decode())
    except (InvalidMachineConfig, UnicodeDecodeError):
        return None


def _is_toml(data: bytes) -> bool:
    try:
        tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_yaml(data: bytes) -> bool:
    try:
        plain(data.decode())
    except (NotYaml, UnicodeDecodeError):
        return False
    return True
