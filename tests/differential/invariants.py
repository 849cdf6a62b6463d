"""Invariants of the editors, for any content of the edited file, valid or not.

Each function edits a file, and yields a line for each invariant that does not hold. An exception is a bug, too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

from peili.adapters.containerd import HostsFiles
from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.yaml_text import NotYaml, parse_all
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
"""Part of the comment lines around peili's section in a hosts.toml."""
_MARK = b"added by peili"
"""Part of the comments with which peili marks its lines in a registries.yaml."""

VERSIONS = (None, "1.6.20", "1.7.24", "2.1.4", "2.4.2")


def check_hosts_toml(data: bytes, folder: Path, version: str | None, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """Check the editor of hosts.toml with a file that contains `data`.

    Args:
        data: The content of hosts.toml for one registry.
        folder: The `config_path`, which no one else uses.
        version: The version of containerd, or None.
        registries: The registries to change; all if empty.
    """
    file = folder / "r.example/hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    hosts = HostsFiles(MIRROR, config_path=[folder], registries=registries, version=version)
    json.dumps([each.json() for each in hosts.show()])
    dry_run = hosts.apply(dry_run=True)
    if file.read_bytes() != data:
        yield "a dry run changed the file"
    outcome = hosts.apply()
    after = file.read_bytes()
    if outcome.changes != dry_run.changes:
        yield f"apply differs from its dry run: {dry_run}, then {outcome}"
    if any(file == each.path for each in outcome.problems) and after != data:
        yield f"apply reports that it did not change the file, but it did: {outcome.problems}"
    if _is_toml(data) and not _is_toml(after):
        yield f"the file was TOML and is not any more: {after!r}"
    if again := hosts.apply().changes:
        yield f"a second apply changes something: {again}"
    json.dumps([*map(str, hosts.show())])
    hosts.remove()
    if OURS not in data and file.read_bytes() != data:
        yield f"remove left {file.read_bytes()!r}"
    if (folder / "_default").exists():
        yield "remove left a directory"


def check_registries_yaml(data: bytes, folder: Path, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """Check the editor of registries.yaml with a file that contains `data`, in a folder that no one else uses."""
    file = folder / "registries.yaml"
    file.write_bytes(data)
    editor = RegistriesFile(MIRROR, file=file, registries=registries)
    _show(editor, folder)
    outcome = editor.apply()
    after = file.read_bytes()
    if outcome.problems and after != data:
        yield f"apply reports that it did not change the file, but it did: {outcome.problems}"
    if _is_yaml(data) and not _is_yaml(after):
        yield f"the file was YAML and is not any more: {after!r}"
    if again := editor.apply().changes:
        yield f"a second apply changes something: {again}"
    _show(editor, folder)
    RegistriesFile(MIRROR, file=file).remove()
    remaining = file.read_bytes() if file.exists() else None
    if _MARK not in data and remaining != data:
        yield f"remove left {remaining!r}"


def _show(editor: RegistriesFile, folder: Path) -> None:
    try:
        json.dumps([each.json() for each in editor.show(data_dir=folder)])
    except CannotEdit as error:
        str(error)


def check_talos(data: bytes, registries: tuple[str, ...] = ()) -> Iterator[str]:
    """Check the patches for a machine configuration of Talos that contains `data`."""
    config = _parse(data)
    if config is None:
        return
    try:
        patch = patch_to_apply(config, MIRROR, registries)
        removal = patch_to_remove(config, MIRROR, registries)
    except InvalidMachineConfig:
        return
    for text in (patch.text, removal.text):
        if (printed := _parse(text.encode())) is not None:
            try:
                patch_to_apply(printed, MIRROR, registries)
                patch_to_remove(printed, MIRROR, registries)
            except InvalidMachineConfig:
                continue
    patched = merge_patch(config, patch.text)
    if {name: patched[name] for name in (each.registry for each in patch.mirrors)} != {
        each.registry: each for each in patch.mirrors
    }:
        yield f"the patch does not set the mirrors that it reports: {patch.text!r}"
    if again := patch_to_apply(MachineConfig(new=patched), MIRROR, registries).mirrors:
        yield f"a second apply changes something: {again}"


def _parse(data: bytes) -> MachineConfig | None:
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
        parse_all(data.decode())
    except (NotYaml, UnicodeDecodeError):
        return False
    return True
