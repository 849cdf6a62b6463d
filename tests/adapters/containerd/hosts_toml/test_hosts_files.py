"""`apply` puts peili in front of the other hosts and changes nothing else; `remove` restores the original files."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.support.trees import Tree, make_tree, snapshot

from peili.adapters.containerd import HostsFiles
from peili.mirror import ConfigError

MIRROR = "http://127.0.0.1:5050"
OURS = {"capabilities": ["pull"]}
HARBOR = b'[host."https://harbor.example/v2/hub"]\n  capabilities = ["pull", "resolve"]\n  override_path = true\n'
FULL = b"""\
# written by a person
server = "https://registry-1.docker.io"  # upstream
capabilities = ["pull", "resolve"]
ca = "ca.pem"

# the near one
[host."https://harbor.example/v2/hub"]
  ca = ["a.pem", "/etc/b.pem"]
  client = [["c.cert", "c.key"]]
  override_path = true
  [host."https://harbor.example/v2/hub".header]
    x-token = ["1", "2"]

[host."https://far.example"]  # the far one
  skip_verify = false
"""

# The content of each file before `apply`, and the hosts that containerd tries after peili, in their order.
FILES: dict[str, tuple[bytes, list[str]]] = {
    "server only": (b'server = "https://registry-1.docker.io"\n', []),
    "no line end": (b'server = "https://registry-1.docker.io"', []),
    "a mirror": (b'[host."https://m.example"]\n', ["https://m.example"]),
    "override_path": (HARBOR, ["https://harbor.example/v2/hub"]),
    "everything": (FULL, ["https://harbor.example/v2/hub", "https://far.example"]),
    "everything, CRLF": (
        FULL.replace(b"\n", b"\r\n"),
        ["https://harbor.example/v2/hub", "https://far.example"],
    ),
    "everything, no line end": (FULL.rstrip(), ["https://harbor.example/v2/hub", "https://far.example"]),
    "byte-order mark": (b"\xef\xbb\xbf" + HARBOR, ["https://harbor.example/v2/hub"]),
    "byte-order mark, dotted": (b'\xef\xbb\xbfhost."https://m".ca = "x"\n', ["https://m"]),
    "the parent first": (b'[host]\n  [host."https://m"]\n', ["https://m"]),
    "inline below the parent": (b"[host]\n'https://m' = {capabilities = ['pull']}\n", ["https://m"]),
    "header below comes first": (b"[host.'https://m'.header]\nx = '1'\n[host.'https://m']\n", ["https://m"]),
    "dotted": (b"# top\nhost.'https://m'.capabilities = ['pull']\n[host.'https://n']\n", ["https://m", "https://n"]),
    "dotted, inline": (b"host.'https://m' = {ca = 'x'}\nserver = 'https://s'", ["https://m"]),
    "empty": (b"", []),
    "a comment": (b"# nothing yet\n", []),
    "blank lines": (b"\n\n", []),
    "names that contain peili": (b"# peili\n[host.'https://peili.example']\n", ["https://peili.example"]),
    "keys of newer versions": (b"[host.'https://m']\ncapabilities = ['pull', 'referrers']\n", ["https://m"]),
    "unknown keys": (b"proxy = 'http://p:1'\n[host.'https://m']\nlater = 1\n", ["https://m"]),
}

# Files for which it is not certain that these versions (None: unknown) would try the same hosts as before.
UNCERTAIN: dict[str, set[str | None]] = {
    "byte-order mark": {None, "2.0.0"},  # containerd 2.x cannot read it
    "byte-order mark, dotted": {None, "2.0.0"},
    "inline below the parent": {None, "1.7.2"},  # containerd 1.x tries the hosts in any order
    "dotted": {None},  # containerd 2.x ignores these hosts
    "dotted, inline": {None, "1.7.2"},
    "keys of newer versions": {None, "1.7.2", "2.0.0"},  # these versions reject the file
}
CERTAIN = [
    pytest.param(content, others, version, id=f"{name}-{version}")
    for name, (content, others) in FILES.items()
    for version in (None, "1.7.2", "2.0.0")
    if version not in UNCERTAIN.get(name, ())
]
UNCHANGED = [(FILES[name][0], version) for name, versions in UNCERTAIN.items() for version in sorted(versions, key=str)]


def files(root: Path, *registries: str, **options: Any) -> HostsFiles:
    return HostsFiles(MIRROR, config_path=[root], registries=registries, **options)


def document(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text("utf-8-sig"))


@pytest.mark.parametrize(("before", "version"), UNCHANGED)
def test_a_file_with_an_uncertain_result_is_not_changed(before: bytes, version: str | None, tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": before})
    original = snapshot(tmp_path)
    outcome = files(tmp_path, "docker.io", version=version).apply()
    assert (len(outcome.problems), outcome.changes) == (1, ())
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize(("before", "others", "version"), CERTAIN)
def test_peili_is_first_and_the_rest_stays_the_same(
    before: bytes, others: list[str], version: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make_tree(tmp_path, {"docker.io/hosts.toml": before})
    original, expected = snapshot(tmp_path), document(file)
    changed = files(tmp_path, "docker.io", version=version)
    outcome = changed.apply()
    assert ([each.file for each in outcome.changes], outcome.problems) == ([file], ())
    after = document(file)
    assert {*after["host"]} == {MIRROR, *others}
    if version != "2.0.0":  # it reads only hosts with a table header
        assert list(after["host"]) == [MIRROR, *others]
    assert after["host"].pop(MIRROR) == OURS
    assert {**after, "host": after["host"] or expected.get("host", {})} == {
        **expected,
        "host": expected.get("host", {}),
    }
    assert changed.show()[0].is_first
    assert changed.remove().problems == ()
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize("before", [before for before, _ in FILES.values()], ids=FILES)
def test_applying_twice_writes_nothing(before: bytes, tmp_path: Path) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make_tree(tmp_path, {"docker.io/hosts.toml": before})
    files(tmp_path).apply()
    known = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (file, tmp_path, file.parent)]
    assert files(tmp_path).apply().changes == ()
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (file, tmp_path, file.parent)] == known


def test_another_url_or_other_capabilities_replace_the_earlier_ones(tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": FULL})
    original = snapshot(tmp_path)
    files(tmp_path).apply()
    other = HostsFiles("http://127.0.0.1:5060", config_path=[tmp_path], capabilities=["pull", "resolve"])
    assert len(other.apply().changes) == 2
    hosts = document(tmp_path / "docker.io/hosts.toml")["host"]
    assert list(hosts)[:2] == ["http://127.0.0.1:5060", "https://harbor.example/v2/hub"]
    assert hosts["http://127.0.0.1:5060"] == {"capabilities": ["pull", "resolve"]}
    files(tmp_path).remove()  # `remove` works whatever the configuration
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize(
    ("version", "known"), [(None, False), ("1.7.9", False), ("2.0.5", False), ("v2.1.0-rc.1", True)]
)
def test_a_dial_timeout_is_written_for_versions_that_know_it(version: str | None, known: bool, tmp_path: Path) -> None:
    files(tmp_path, "docker.io", version=version, dial_timeout="300ms").apply()
    table = document(tmp_path / "docker.io/hosts.toml")["host"][MIRROR]
    assert table == ({**OURS, "dial_timeout": "300ms"} if known else OURS)


CERTIFICATES: Tree = {"r_5000_/ca.crt": b"", "r_5000_/b.crt": b"", "r_5000_/c.cert": b"", "r_5000_/c.key": b""}


def test_docker_style_certificates_stay_in_force(tmp_path: Path) -> None:
    make_tree(tmp_path, {**CERTIFICATES, "r_5000_/d.cert": b"", "r_5000_/e.key": b"", "r_5000_/x.crt/y": b""})
    original = snapshot(tmp_path)
    files(tmp_path, "r:5000").apply()
    assert document(tmp_path / "r_5000_/hosts.toml") == {
        "ca": ["b.crt", "ca.crt"],
        "client": [["c.cert", "c.key"], ["d.cert", "d.cert"]],  # a certificate without a key file contains its key
        "host": {MIRROR: OURS},
    }
    files(tmp_path).remove()
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize(("version", "named"), [("1.6.20~ds1", True), ("2.0.0", False)])
def test_certificates_next_to_a_file_that_containerd_1_ignores_stay_in_force(
    version: str, named: bool, tmp_path: Path
) -> None:
    make_tree(tmp_path, {**CERTIFICATES, "r_5000_/hosts.toml": b"server = 'https://r:5000'\n"})
    original = snapshot(tmp_path)
    files(tmp_path, "r:5000", version=version).apply()
    content = document(tmp_path / "r_5000_/hosts.toml")
    assert content.get("ca") == (["b.crt", "ca.crt"] if named else None)
    assert content.get("client") == ([["c.cert", "c.key"]] if named else None)
    files(tmp_path).remove()
    assert snapshot(tmp_path) == original


@pytest.mark.parametrize("version", ["1.6.20~ds1", None])
@pytest.mark.parametrize("content", ["server = 'https://elsewhere'", "skip_verify = true", "ca = 'own.pem'"])
def test_settings_that_containerd_1_ignores_do_not_take_effect(
    content: str, version: str | None, tmp_path: Path
) -> None:
    """With peili's host in the file, containerd 1.x would begin to use them, and they may not work."""
    make_tree(tmp_path, {**CERTIFICATES, "r_5000_/hosts.toml": content.encode()})
    original = snapshot(tmp_path)
    (problem,) = files(tmp_path, "r:5000", version=version).apply().problems
    assert "containerd 1.x ignores hosts.toml, because it has no table [host" in problem.reason
    assert snapshot(tmp_path) == original


def test_a_new_directory_of_a_registry_keeps_the_settings_of_default(tmp_path: Path) -> None:
    """Otherwise the registry would lose the mirrors and certificates of ``_default``."""
    make_tree(tmp_path, {"_default/hosts.toml": FULL, "_default/a.pem": b""})
    original = snapshot(tmp_path)
    files(tmp_path, "ghcr.io").apply()
    content, default = document(tmp_path / "ghcr.io/hosts.toml"), document(tmp_path / "_default/hosts.toml")
    assert list(content["host"]) == [MIRROR, "https://harbor.example/v2/hub", "https://far.example"]
    assert MIRROR not in default["host"]
    harbor = content["host"]["https://harbor.example/v2/hub"]
    assert harbor["ca"] == [f"{tmp_path}/_default/a.pem", "/etc/b.pem"]
    assert harbor["client"] == [[f"{tmp_path}/_default/c.cert", f"{tmp_path}/_default/c.key"]]
    assert harbor["header"] == default["host"]["https://harbor.example/v2/hub"]["header"]
    assert (content["server"], content["ca"]) == (default["server"], f"{tmp_path}/_default/ca.pem")
    assert files(tmp_path, "ghcr.io").apply().changes == ()
    (tmp_path / "_default/hosts.toml").write_bytes(HARBOR)
    files(tmp_path).apply()  # copies the change
    assert list(document(tmp_path / "ghcr.io/hosts.toml")["host"]) == [MIRROR, "https://harbor.example/v2/hub"]
    (tmp_path / "_default/hosts.toml").write_bytes(FULL)
    files(tmp_path).remove()
    assert snapshot(tmp_path) == original


def test_a_new_directory_keeps_the_certificates_of_default(tmp_path: Path) -> None:
    make_tree(tmp_path, {"_default/ca.crt": b""})
    files(tmp_path, "ghcr.io").apply()
    assert document(tmp_path / "ghcr.io/hosts.toml")["ca"] == [f"{tmp_path}/_default/ca.crt"]


def test_every_registry_is_default_and_each_registry_with_a_directory(tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": HARBOR, "r:5000/ca.crt": b"", "empty.example": None, ".hidden": None})
    make_tree(tmp_path, {"not-a-directory": b""})
    original = snapshot(tmp_path)
    outcome = files(tmp_path).apply()
    assert [str(each.file.relative_to(tmp_path)) for each in outcome.changes] == [
        f"{name}/hosts.toml" for name in ("docker.io", "empty.example", "r:5000", "_default")
    ]
    files(tmp_path).remove()
    assert snapshot(tmp_path) == original


def test_only_the_chosen_registries_are_changed(tmp_path: Path) -> None:
    make_tree(tmp_path, {f"{name}/hosts.toml": HARBOR for name in ("a.example", "b.example", "c.example_5000_")})
    files(tmp_path).apply()
    assert [each.file.parent.name for each in files(tmp_path, "c.example:5000", "_default").remove().changes] == [
        "c.example_5000_",
        "_default",
    ]
    assert MIRROR in document(tmp_path / "a.example/hosts.toml")["host"]


class TestSeveralDirectories:
    """containerd uses the first directory of `config_path` that has the registry, or a ``_default``."""

    def test_each_file_is_changed_in_the_directory_that_containerd_uses(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make_tree(one, {"a.example/hosts.toml": HARBOR})
        make_tree(two, {"a.example/hosts.toml": HARBOR, "b.example/ca.crt": b""})
        original = snapshot(tmp_path)
        both = HostsFiles(MIRROR, config_path=[f"{one}:{two}"])
        changed = [str(each.file.relative_to(tmp_path)) for each in both.apply().changes]
        # A _default in the first directory would hide all of the second.
        assert changed == ["one/a.example/hosts.toml", "two/b.example/hosts.toml", "two/_default/hosts.toml"]
        assert HostsFiles(MIRROR, config_path=[one, two]).apply().changes == ()
        both.remove()
        assert snapshot(tmp_path) == original

    def test_directories_that_a_default_hides_are_not_changed(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make_tree(one, {"_default/hosts.toml": HARBOR})
        make_tree(two, {"a.example/hosts.toml": FULL})
        both = HostsFiles(MIRROR, config_path=[one, two])
        assert [each.file for each in both.apply().changes] == [one / "_default/hosts.toml"]
        assert "never uses this directory" in both.show()[1].notes[0]

    def test_a_directory_that_peili_created_copies_the_settings_that_it_hides(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make_tree(two, {"a.example/hosts.toml": HARBOR})
        one.mkdir()
        original = snapshot(tmp_path)
        HostsFiles(MIRROR, config_path=[one], registries=["a.example"]).apply()
        both = HostsFiles(MIRROR, config_path=[one, two], registries=["a.example"])
        assert [each.file for each in both.apply().changes] == [one / "a.example/hosts.toml"]
        assert len(document(one / "a.example/hosts.toml")["host"]) == 2
        both.remove()
        assert snapshot(tmp_path) == original

    def test_a_new_directory_is_created_where_nothing_precedes_it(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make_tree(two, {"_default/hosts.toml": HARBOR})
        both = HostsFiles(MIRROR, config_path=[one, two], registries=["new.example"])
        assert [each.file for each in both.apply().changes] == [two / "new.example/hosts.toml"]
        assert len(document(two / "new.example/hosts.toml")["host"]) == 2


def test_created_directories_are_removed_with_the_last_file(tmp_path: Path) -> None:
    root = tmp_path / "etc/containerd/certs.d"
    (tmp_path / "etc").mkdir()
    original = snapshot(tmp_path)
    names = ["a.example", "b.example", "_default"]
    for order in (names, names[::-1]):
        for name in names:
            files(root, name).apply()
        for name in order:
            assert root.exists()
            files(root, name).remove()
        assert snapshot(tmp_path) == original


def test_a_created_directory_stays_if_others_put_files_into_it(tmp_path: Path) -> None:
    root = tmp_path / "certs.d"
    files(root).apply()
    (root / "_default/ca.crt").touch()
    assert document(root / "_default/hosts.toml") == {"host": {MIRROR: OURS}}
    files(root).apply()  # from now on, the certificate counts
    assert document(root / "_default/hosts.toml") == {"ca": ["ca.crt"], "host": {MIRROR: OURS}}
    files(root).remove()
    assert [path.name for path in (root / "_default").iterdir()] == ["ca.crt"]


def test_modes_and_owners_are_kept_and_new_files_are_world_readable(tmp_path: Path) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make_tree(tmp_path, {"docker.io/hosts.toml": HARBOR})
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12, 34)
    original = snapshot(tmp_path)
    old = os.umask(0o077)
    try:
        files(tmp_path).apply()
    finally:
        os.umask(old)
    known, new = file.stat(), tmp_path / "_default"
    assert (known.st_mode, known.st_uid, known.st_gid) == original["docker.io/hosts.toml"][:3]
    assert stat.S_IMODE(new.stat().st_mode) == 0o755
    assert stat.S_IMODE((new / "hosts.toml").stat().st_mode) == 0o644
    files(tmp_path).remove()
    assert snapshot(tmp_path) == original


def test_the_target_of_a_symbolic_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    make_tree(tmp_path, {"kept/linked.toml": HARBOR, "certs.d/docker.io/hosts.toml": "../../kept/linked.toml"})
    make_tree(tmp_path, {"certs.d/also": "docker.io"})
    original = snapshot(tmp_path)
    assert len(files(tmp_path / "certs.d").apply().changes) == 2
    assert next(iter(document(tmp_path / "kept/linked.toml")["host"])) == MIRROR
    assert files(tmp_path / "certs.d").apply().changes == ()
    files(tmp_path / "certs.d").remove()
    assert snapshot(tmp_path) == original


def test_a_dry_run_returns_the_changes_and_makes_none(tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": b'server = "https://s"'})
    original = snapshot(tmp_path)
    outcome = files(tmp_path, version="2.0.0").apply(dry_run=True)
    assert snapshot(tmp_path) == original
    edited, new = (each.diff() for each in outcome.changes)
    assert edited.startswith(f"--- {tmp_path}/docker.io/hosts.toml\n+++ {tmp_path}/docker.io/hosts.toml\n@@ ")
    assert '-server = "https://s"\n\\ No newline at end of file\n+server = "https://s"\n' in edited
    assert new.startswith(f"--- /dev/null\n+++ {tmp_path}/_default/hosts.toml\n@@ ")
    assert f'+[host."{MIRROR}"]\n' in new
    files(tmp_path, version="2.0.0").apply()
    now = snapshot(tmp_path)
    assert len(files(tmp_path).remove(dry_run=True).changes) == 2
    assert snapshot(tmp_path) == now


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mirror": "127.0.0.1:5050"}, "mirror"),
        ({"registries": ["a/b"]}, "registries"),
        ({"registries": ["../x"]}, "registries"),
        ({"capabilities": ["resolve"]}, "capabilities"),
        ({"capabilities": ["pull", "fly"]}, "capabilities"),
        ({"version": "new"}, "version"),
        ({"config_path": []}, "config_path"),
        ({"config_path": ["/a::/b"]}, "config_path"),
        ({"config_path": ["/a:/var/lib/rancher/k3s/agent/etc/containerd/certs.d"]}, "config_path"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(options: dict[str, Any], key: str) -> None:
    arguments: dict[str, Any] = {"mirror": MIRROR, **options}
    with pytest.raises(ConfigError) as caught:
        HostsFiles(**arguments)
    assert caught.value.key == key


def test_the_default_directories_are_those_of_containerd() -> None:
    containerd, docker = Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d")
    assert HostsFiles(MIRROR).roots == HostsFiles(MIRROR, version="1.7.0").roots == (containerd,)
    assert HostsFiles(MIRROR).for_version("2.1.0").roots == (containerd, docker)
