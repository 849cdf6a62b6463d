"""Unusual files in the three formats that peili edits: no editor crashes, and `remove` restores every file.

What peili reports about a YAML file is what the parsers of k3s and Talos read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.differential.corpus import CORPUS
from tests.differential.invariants import (
    MIRROR,
    VERSIONS,
    check_hosts_toml,
    check_registries_yaml,
    check_talos,
)
from tests.differential.yaml_corpus import K3S_READS, REGISTRIES, TALOS, TALOS_READS

from peili.adapters.files.editor import CannotEdit
from peili.adapters.k3s import RegistriesFile
from peili.adapters.talos import InvalidMachineConfig, parse_config

HOSTS = {
    f"{name}: {path}": content
    for name, case in CORPUS.items()
    for path, content in case.at(5050).tree.items()
    if isinstance(content, bytes) and path.endswith("hosts.toml")
}


@pytest.mark.parametrize("name", HOSTS)
def test_a_hosts_toml_is_restored_after_apply_or_stays_unchanged(name: str, tmp_path: Path) -> None:
    version = VERSIONS[list(HOSTS).index(name) % len(VERSIONS)]  # test_against_containerd.py uses each real version
    assert [*check_hosts_toml(HOSTS[name], tmp_path, version)] == []


@pytest.mark.parametrize("content", REGISTRIES.values(), ids=REGISTRIES)
def test_a_registries_yaml_is_restored_after_apply_or_stays_unchanged(content: bytes, tmp_path: Path) -> None:
    for registries in ((), ("docker.io",)):
        assert [*check_registries_yaml(content, tmp_path, registries)] == []


@pytest.mark.parametrize("name", REGISTRIES)
def test_show_reports_what_k3s_reads_from_a_registries_yaml(name: str, tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    file.write_bytes(REGISTRIES[name])
    reads = K3S_READS[name]
    try:
        shown = RegistriesFile(MIRROR, file=file).show(data_dir=tmp_path)
    except CannotEdit:
        return
    assert reads is not None, "k3s can't read the file, but peili reports what it means"
    assert {each.registry: list(each.endpoints) for each in shown if each.endpoints or each.registry in reads} == reads


@pytest.mark.parametrize("content", TALOS.values(), ids=TALOS)
def test_a_patch_for_talos_sets_the_mirrors_that_it_reports(content: bytes) -> None:
    for registries in ((), ("docker.io",), ("*",)):
        assert [*check_talos(content, registries)] == []


@pytest.mark.parametrize("name", [name for name, reads in TALOS_READS.items() if reads is not None])
def test_peili_reads_from_a_machine_configuration_what_talos_reads(name: str) -> None:
    try:
        config = parse_config(TALOS[name].decode())
    except (InvalidMachineConfig, UnicodeDecodeError):
        return
    assert {
        mirrors.registry: [(each.url, each.override_path) for each in mirrors.endpoints]
        for mirrors in config.mirrors.values()
    } == TALOS_READS[name]
