"""Forms of URLs and directory names that containerd cannot read, ignores, or takes for the same mirror."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import HostsFiles

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
def test_an_ipv6_mirror_is_not_written_for_a_containerd_that_would_ignore_the_file(
    mirror: str, version: str | None, tmp_path: Path
) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": b"[host.'https://m']\n"})
    original = snapshot(tmp_path)
    outcome = HostsFiles(mirror, config_path=[tmp_path], version=version).apply()
    assert outcome.changes == ()
    assert all("such as http://localhost:5050" in str(each) for each in outcome.problems)
    assert len(outcome.problems) == 2
    assert snapshot(tmp_path) == original


def test_containerd_2_gets_an_ipv6_mirror(tmp_path: Path) -> None:
    assert HostsFiles(IPV6, config_path=[tmp_path], version="2.2.1").apply().problems == ()
    assert HostsFiles(IPV6, config_path=[tmp_path], version="2.2.1").show()[0].is_first


@pytest.mark.parametrize(("version", "urls"), [("1.6.20", [None]), (None, [])])
@pytest.mark.parametrize("content", BRACKETED.values(), ids=BRACKETED)
def test_show_and_apply_say_that_containerd_1_ignores_such_a_file(
    content: bytes, version: str | None, urls: list[str | None], tmp_path: Path
) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": content})
    files = HostsFiles(MIRROR, config_path=[tmp_path], version=version)
    (status,) = files.show()
    assert "containerd 1.x cannot read" in status.notes[0]
    assert [host.url for host in status.hosts] == urls
    (problem,) = files.apply().problems
    assert "containerd 1.x cannot read" in str(problem)
    assert (tmp_path / "docker.io/hosts.toml").read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"# [host.'[']\n[host.'https://m']\n", b"[host.'https://m'] # [x]\nheader = {x = ['[1]']}\n"]
)
def test_brackets_elsewhere_are_no_problem(content: bytes, tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": content})
    assert HostsFiles(MIRROR, config_path=[tmp_path]).apply().problems == ()


NOT_REGISTRIES = ("_backup", "lost+found", "docker.io (old)", "docker.io.", "a b", "UPPER_case")


def test_directories_that_cannot_be_a_registrys_are_not_changed_and_not_shown(tmp_path: Path) -> None:
    for name in NOT_REGISTRIES:
        (tmp_path / name).mkdir()
    make_tree(
        tmp_path, {"_backup/docker.io/hosts.toml": b"[host.'https://m']\n", "r_5000_/hosts.toml": b"", "r:6000/x": b""}
    )
    original = snapshot(tmp_path)
    files = HostsFiles(MIRROR, config_path=[tmp_path])
    changed = {each.file.parent.name for each in files.apply().changes}
    assert changed == {"r_5000_", "r:6000", "_default"}
    assert {each.registry for each in files.show()} == {"r:5000", "r:6000", "_default"}
    files.remove()
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize(
    "url",
    [f"{MIRROR}/v2", f"{MIRROR}/", f"{MIRROR}/v2/", f"{MIRROR}//v2", "http://127.0.0.1:05050"],
)
def test_a_mirror_added_by_hand_is_recognised_in_every_form(url: str, tmp_path: Path) -> None:
    content = f'[host."{url}"]\n  capabilities = ["pull"]\n'.encode()
    make_tree(tmp_path, {"docker.io/hosts.toml": content})
    files = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"])
    outcome = files.apply()
    assert (outcome.changes, outcome.problems) == ((), ())
    assert files.show()[0].is_first


def test_a_copy_of_the_directories_is_no_registry(tmp_path: Path) -> None:
    """Its name could be a registry's, such as ``registry``, which has no directories in it."""
    make_tree(
        tmp_path,
        {"backup/docker.io/hosts.toml": b"[host.'https://m']\n", "registry/ca.crt": b"", "docker.io/old/x": b""},
    )
    before = snapshot(tmp_path)
    files = HostsFiles(MIRROR, config_path=[tmp_path], version="2.1.0")
    assert {each.file.parent.name for each in files.apply().changes} == {"registry", "docker.io", "_default"}
    assert {each.registry for each in files.show()} == {"registry", "docker.io", "_default"}
    files.remove()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("level", ["etc/containerd", "etc", ""])
def test_a_directory_above_the_usual_one_is_not_changed(level: str, tmp_path: Path) -> None:
    make_tree(tmp_path, {"etc/containerd/certs.d/docker.io": None, "etc/apt": None, "etc/containerd/config.toml": b""})
    before = snapshot(tmp_path)
    outcome = HostsFiles(MIRROR, config_path=[tmp_path / level], version="2.1.0").apply()
    [problem] = outcome.problems
    hint = f"containerd's config_path is a directory below it; did you mean {tmp_path}/etc/containerd/certs.d?"
    assert str(problem) == f"{tmp_path / level}: not changed: {hint}"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["docker.io", "registry_5000_"])
def test_the_directory_of_a_registry_is_no_config_path(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "certs.d" / name
    make_tree(directory, {"hosts.toml": b"[host.'https://m']\n"})
    before = snapshot(tmp_path)
    [problem] = HostsFiles(MIRROR, config_path=[directory], version="2.1.0").apply().problems
    hint = f"it is the directory of a registry; did you mean {tmp_path}/certs.d?"
    assert str(problem) == f"{directory}: not changed: {hint}"
    assert snapshot(tmp_path) == before
