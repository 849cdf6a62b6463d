"""`show` reports what is in force, for the version of containerd that reads the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.directories import open_directory
from tests.support.trees import Tree, make_tree

from peili.adapters.containerd import HostsFiles

MIRROR = "http://127.0.0.1:5050"


def show(root: Path, version: str | None = None) -> str:
    return "\n\n".join(map(str, HostsFiles(MIRROR, config_path=[root], version=version).show()))


def test_the_hosts_in_order_and_their_capabilities(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "docker.io/hosts.toml": b"[host.'https://harbor.example/v2/hub']\noverride_path = true\n"
            b"capabilities = ['pull', 'resolve']\n"
        },
    )
    HostsFiles(MIRROR, config_path=[tmp_path]).apply()
    assert (
        show(tmp_path)
        == f"""\
docker.io  ({tmp_path}/docker.io)
  1. {MIRROR} (peili): pull
  2. https://harbor.example/v2/hub: pull, resolve; with override_path
  3. https://registry-1.docker.io: pull, resolve, push
  containerd resolves tags at 2, then 3, and fetches content from 1, then 2, then 3; it tries each only if those \
before it fail.

_default  ({tmp_path}/_default)
  1. {MIRROR} (peili): pull
  2. the registry itself: pull, resolve, push
  containerd resolves tags at 2, and fetches content from 1, then 2; it tries each only if those before it fail."""
    )


def test_as_json(tmp_path: Path) -> None:
    content = b"server = 'https://s'\nskip_verify = true\n[host.a]\ncapabilities = ['PULL']\noverride_path = false\n"
    make_tree(tmp_path, {"r_5000_/hosts.toml": content})
    (found,) = HostsFiles(MIRROR, config_path=[tmp_path]).show()
    assert found.json() == {
        "registry": "r:5000",
        "directory": f"{tmp_path}/r_5000_",
        "peili_first": False,
        "hosts": [
            {"url": "a", "capabilities": ["pull"], "settings": []},
            {"url": "https://s", "capabilities": ["pull", "resolve", "push"], "settings": ["skip_verify"]},
        ],
        "notes": [],
    }


NO_HOST = 'containerd 1.x ignores hosts.toml, because it has no table [host."…"]'
UNUSED = "containerd does not use the certificates in the directory, because hosts.toml does not name them"

NO_PULLS = "containerd cannot pull from this registry"
LOOP = "Too many levels of symbolic links"
PEM = b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"

NOTES: list[tuple[Tree, str | None, list[str], list[str | None]]] = [
    ({"r/hosts.toml": b"server = 'https://s'"}, "1.6.20", [NO_HOST], [None]),
    ({"r/hosts.toml": b"server = 'https://s'"}, "2.0.0", [], ["https://s"]),
    ({"r/hosts.toml": b"[host.a]", "r/ca.crt": b""}, None, [UNUSED], ["a", None]),
    (
        {"r/hosts.toml": b"ca = 'ca.crt'\n[host.a]", "r/ca.crt": b"x"},
        None,
        [f"{NO_PULLS}: /r/ca.crt contains no certificate"],
        ["a", None],
    ),
    (
        {"r/hosts.toml": b"client = [['c.cert', 'c.key']]\n[host.a]", "r/c.cert": PEM},
        None,
        [f"{NO_PULLS}: /r/c.key cannot be read: No such file or directory"],
        ["a", None],
    ),
    (
        {"r/ca.crt": PEM},
        None,
        ["peili cannot tell how containerd reads hosts.toml: /r/ca.crt may not be a usable certificate"],
        [],
    ),
    ({"r/hosts.toml": b"host.a.skip_verify = true\n[host.b]"}, "1.7.0", [], ["a", "b", None]),
    ({"r/hosts.toml": b"[host.a.header]\nx = '1'\n[host.b]\n[host.a]"}, "2.0.0", [], ["a", "b", "a", None]),
    ({"r.example": b""}, None, [f"{NO_PULLS}: this must be a directory, but it is a file"], []),
    ({"_default": b"", "hosts.toml": b""}, None, [f"{NO_PULLS}: this must be a directory, but it is a file"], []),
    ({"r/hosts.toml": "hosts.toml"}, None, [f"{NO_PULLS}: hosts.toml cannot be read: {LOOP}"], []),
    (
        {"r/hosts.toml": "/nowhere"},
        None,
        ["containerd ignores hosts.toml, because it is a symbolic link to a file that does not exist"],
        [None],
    ),
    (
        {"r/hosts.toml": b"host.a.skip_verify = true\n[host.b]"},
        "2.0.0",
        ["containerd 2.x ignores hosts without a table header: a"],
        ["b", None],
    ),
    ({"r/hosts.toml": b""}, None, ["hosts.toml is empty, which is the same as no file"], [None]),
    (
        {"r/hosts.toml": b"server = "},
        None,
        ["peili cannot tell how containerd reads hosts.toml: not TOML: Invalid value (at end of document)"],
        [],
    ),
    ({"r/hosts.toml": None}, None, [f"{NO_PULLS}: hosts.toml cannot be read: Is a directory"], []),
]


@pytest.mark.parametrize(("tree", "version", "notes", "urls"), NOTES)
def test_notes(tree: Tree, version: str | None, notes: list[str], urls: list[str | None], tmp_path: Path) -> None:
    make_tree(tmp_path, tree)
    (found,) = HostsFiles(MIRROR, config_path=[tmp_path], version=version).show()
    assert [each.replace(str(tmp_path), "") for each in found.notes] == notes
    assert found.is_broken == any(each.startswith(NO_PULLS) for each in notes)
    assert [each.url for each in found.hosts] == urls


def test_a_host_without_pull_is_not_used_for_tags_either(tmp_path: Path) -> None:
    make_tree(tmp_path, {"r/hosts.toml": b"capabilities = ['pull']\n[host.a]\ncapabilities = ['resolve']\n"})
    assert "containerd resolves tags at 2, and fetches content from 2" in show(tmp_path)


def test_a_hidden_directory_has_a_note(tmp_path: Path) -> None:
    make_tree(tmp_path, {"r_5000_": None, "r:5000": None})
    hidden = next(each for each in HostsFiles(MIRROR, config_path=[tmp_path]).show() if each.notes)
    assert hidden.directory == tmp_path / "r:5000"
    assert hidden.notes == (f"containerd never uses this directory, but {tmp_path}/r_5000_",)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the user")
@pytest.mark.parametrize("unreadable", ["hosts.toml", "key.pem"])
def test_what_only_root_may_read_is_uncertain(unreadable: str) -> None:
    """containerd runs as root, and may read it."""
    with open_directory() as root:
        content = b"[host.'https://m']\nclient = [['key.pem', 'key.pem']]\n"
        make_tree(root, {"docker.io/hosts.toml": content, "docker.io/key.pem": b"-----BEGIN CERTIFICATE-----"})
        (root / "docker.io" / unreadable).chmod(0o600)
        os.seteuid(65534)
        try:
            [shown] = HostsFiles("http://127.0.0.1:5050", config_path=[root], version="2.1.0").show()
        finally:
            os.seteuid(0)
        assert (shown.is_uncertain, shown.is_broken) == (True, False)
        assert shown.notes[0].endswith("this user may not read it")
