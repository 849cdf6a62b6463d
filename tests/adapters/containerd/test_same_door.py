"""What containerd can't read, never looks at, or takes for the same mirror, in folders and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.adapters.containerd.trees import make, snapshot

from peili.adapters.containerd import HostsFiles
from peili.adapters.files.urls import same_door
from peili.adapters.k3s import RegistriesFile
from peili.adapters.standalone.cli import main

MIRROR = "http://127.0.0.1:5050"
IPV6 = "http://[::1]:5050"
BRACKETED = {
    "an address": b'[host."http://[::1]:6000"]\n',
    "with a comment": b'[host."http://[::1]:6000"] # a ] in a comment\n',
    "a table below it": b'[host."http://[fd00::2]/v2".header]\nx = "1"\n',
    "in single quotes, with white space": b"  [ host . 'http://[::1]:6000' ]\n",
}


@pytest.mark.parametrize("version", [None, "1.6.20", "1.7.24"])
@pytest.mark.parametrize("mirror", [IPV6, "http://[fd00::1]:5050/peili"])
def test_an_ipv6_mirror_is_not_written_for_a_containerd_that_could_read_nothing_of_the_file(
    mirror: str, version: str | None, tmp_path: Path
) -> None:
    make(tmp_path, {"docker.io/hosts.toml": b"[host.'https://m']\n"})
    was = snapshot(tmp_path)
    outcome = HostsFiles(mirror, config_path=[tmp_path], version=version).apply()
    assert outcome.changes == ()
    assert all("such as http://localhost:5050" in str(each) for each in outcome.problems)
    assert len(outcome.problems) == 2
    assert snapshot(tmp_path) == was


def test_containerd_2_gets_an_ipv6_mirror(tmp_path: Path) -> None:
    assert HostsFiles(IPV6, config_path=[tmp_path], version="2.2.1").apply().problems == ()
    assert HostsFiles(IPV6, config_path=[tmp_path], version="2.2.1").show()[0].is_first


@pytest.mark.parametrize(("version", "asked"), [("1.6.20", [None]), (None, [])])
@pytest.mark.parametrize("content", BRACKETED.values(), ids=BRACKETED)
def test_show_and_apply_say_that_containerd_1_reads_nothing_of_such_a_file(
    content: bytes, version: str | None, asked: list[str | None], tmp_path: Path
) -> None:
    make(tmp_path, {"docker.io/hosts.toml": content})
    files = HostsFiles(MIRROR, config_path=[tmp_path], version=version)
    (shown,) = files.show()
    assert "containerd 1.x cannot read" in shown.notes[0]
    assert [host.url for host in shown.hosts] == asked
    (problem,) = files.apply().problems
    assert "containerd 1.x cannot read" in str(problem)
    assert (tmp_path / "docker.io/hosts.toml").read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"# [host.'[']\n[host.'https://m']\n", b"[host.'https://m'] # [x]\nheader = {x = ['[1]']}\n"]
)
def test_other_brackets_do_no_harm(content: bytes, tmp_path: Path) -> None:
    make(tmp_path, {"docker.io/hosts.toml": content})
    assert HostsFiles(MIRROR, config_path=[tmp_path]).apply().problems == ()


FOREIGN = ("_backup", "lost+found", "docker.io (old)", "docker.io.", "a b", "UPPER_case")


def test_folders_that_can_be_no_registrys_are_left_alone_and_not_shown(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).mkdir()
    make(
        tmp_path, {"_backup/docker.io/hosts.toml": b"[host.'https://m']\n", "r_5000_/hosts.toml": b"", "r:6000/x": b""}
    )
    was = snapshot(tmp_path)
    files = HostsFiles(MIRROR, config_path=[tmp_path])
    changed = {each.file.parent.name for each in files.apply().changes}
    assert changed == {"r_5000_", "r:6000", "_default"}
    assert {each.registry for each in files.show()} == {"r:5000", "r:6000", "_default"}
    files.remove()
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize(
    "url",
    [f"{MIRROR}/v2", f"{MIRROR}/", f"{MIRROR}/v2/", f"{MIRROR}//v2", "http://127.0.0.1:05050"],
)
def test_a_mirror_put_in_front_by_hand_is_recognised_however_it_is_written(url: str, tmp_path: Path) -> None:
    content = f'[host."{url}"]\n  capabilities = ["pull"]\n'.encode()
    make(tmp_path, {"docker.io/hosts.toml": content})
    files = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"])
    outcome = files.apply()
    assert (outcome.changes, outcome.problems) == ((), ())
    assert files.show()[0].is_first


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://LOCALHOST:5050", "http://localhost:5050", True),
        ("http://localhost", "http://localhost:80", True),
        ("https://m", "m", True),
        ("http://m/v2/hub", "http://m", False),
        ("http://m:5050", "https://m:5050", False),
        ("http://[::1", "http://[::1", True),
        ("http://m:x", "http://m", False),
    ],
)
def test_which_urls_are_the_same_door(url: str, other: str, same: bool) -> None:
    assert same_door(url, other) is same


def test_the_k3s_file_takes_no_ipv6_mirror(tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    (problem,) = RegistriesFile(IPV6, file=file).apply().problems
    assert "such as http://localhost:5050" in str(problem)
    assert not file.exists()


@pytest.mark.parametrize("names", [(), ("*",)])
def test_k3s_default_is_every_registry(names: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    before = 'mirrors:\n  _default:\n    endpoint: ["https://m.example"]\n'
    file.write_text(before)
    registries = RegistriesFile(MIRROR, file=file, registries=names)
    assert registries.apply().problems == ()
    (shown,) = registries.show(data_dir=tmp_path)
    assert (shown.registry, shown.endpoints) == ("_default", (MIRROR, "https://m.example"))
    assert registries.apply().changes == ()
    registries.remove()
    assert file.read_text() == before


def test_k3s_default_and_star_together_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    before = 'mirrors:\n  _default:\n    endpoint: ["https://m"]\n  "*":\n    endpoint: ["https://n"]\n'
    file.write_text(before)
    (problem,) = RegistriesFile(MIRROR, file=file).apply().problems
    assert "remove one" in str(problem)
    assert file.read_text() == before


@pytest.mark.parametrize("url", [f"{MIRROR}/v2", f"{MIRROR}/"])
def test_k3s_a_mirror_put_first_by_hand_is_recognised(url: str, tmp_path: Path) -> None:
    file = tmp_path / "registries.yaml"
    file.write_text(f'mirrors:\n  docker.io:\n    endpoint: ["{url}"]\n')
    registries = RegistriesFile(MIRROR, file=file, registries=["docker.io"])
    assert registries.apply().changes == ()
    assert registries.show(data_dir=tmp_path)[0].is_first


@pytest.mark.parametrize("url", [f"{MIRROR}/v2", f"{MIRROR}/", f"{MIRROR}/v2/"])
def test_talos_a_mirror_put_first_by_hand_is_recognised(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "controlplane.yaml"
    file.write_text(f"apiVersion: v1alpha1\nkind: RegistryMirrorConfig\nname: docker.io\nendpoints:\n  - url: {url}\n")
    where = ["--format", "talos", "--file", str(file), "--mirror", MIRROR, "--registry", "docker.io"]
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr().out == ""
    assert main(["hosts", "show", *where]) == 0
    assert f"{url} (peili)" in capsys.readouterr().out
