"""Odd files in the three formats: nothing ends in a traceback, all comes out again, and what is said of a YAML file is
what the parsers of k3s and Talos read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.judge.corpus import CORPUS
from tests.judge.editing import (
    MIRROR,
    VERSIONS,
    faults_of_hosts,
    faults_of_registries,
    faults_of_talos,
)
from tests.judge.odd_yaml import K3S_READS, REGISTRIES, TALOS, TALOS_READS

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
def test_a_hosts_toml_is_changed_and_comes_back_or_is_left_alone(name: str, tmp_path: Path) -> None:
    version = VERSIONS[list(HOSTS).index(name) % len(VERSIONS)]  # containerd's own verdict is in test_judged.py
    assert [*faults_of_hosts(HOSTS[name], tmp_path, version)] == []


@pytest.mark.parametrize("content", REGISTRIES.values(), ids=REGISTRIES)
def test_a_registries_yaml_is_changed_and_comes_back_or_is_left_alone(content: bytes, tmp_path: Path) -> None:
    for registries in ((), ("docker.io",)):
        assert [*faults_of_registries(content, tmp_path, registries)] == []


@pytest.mark.parametrize("name", REGISTRIES)
def test_what_is_shown_of_a_registries_yaml_is_what_k3s_reads(name: str, tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    file.write_bytes(REGISTRIES[name])
    reads = K3S_READS[name]
    try:
        shown = RegistriesFile(MIRROR, file=file).show(data_dir=tmp_path)
    except CannotEdit:
        return
    assert reads is not None, "k3s can't read it, and peili says what it means"
    assert {each.registry: list(each.endpoints) for each in shown if each.endpoints or each.registry in reads} == reads


@pytest.mark.parametrize("content", TALOS.values(), ids=TALOS)
def test_a_patch_for_talos_says_what_it_should(content: bytes) -> None:
    for registries in ((), ("docker.io",), ("*",)):
        assert [*faults_of_talos(content, registries)] == []


@pytest.mark.parametrize("name", [name for name, reads in TALOS_READS.items() if reads is not None])
def test_what_is_read_of_a_machine_configuration_is_what_talos_reads(name: str) -> None:
    try:
        config = parse_config(TALOS[name].decode())
    except (InvalidMachineConfig, UnicodeDecodeError):
        return
    assert {
        mirrors.registry: [(each.url, each.override_path) for each in mirrors.endpoints]
        for mirrors in config.mirrors.values()
    } == TALOS_READS[name]
