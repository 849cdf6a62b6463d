"""`apply` puts peili in front of what is there and changes nothing else; `remove` leaves what was there before."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.adapters.containerd.trees import Tree, make, snapshot

from peili.adapters.containerd import HostsFiles
from peili.mirror import ConfigError

MIRROR = "http://127.0.0.1:5050"
OURS = {"capabilities": ["pull"]}
HARBOR = b'[host."https://harbor.example/v2/hub"]\n  capabilities = ["pull", "resolve"]\n  override_path = true\n'
FULL = b"""\
# who wrote this
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

# One file each: what it has before, and the hosts that containerd asks after `apply`, in their order.
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
    "names like ours": (b"# peili\n[host.'https://peili.example']\n", ["https://peili.example"]),
    "what newer ones know": (b"[host.'https://m']\ncapabilities = ['pull', 'referrers']\n", ["https://m"]),
    "unknown keys": (b"proxy = 'http://p:1'\n[host.'https://m']\nlater = 1\n", ["https://m"]),
}

# Of these it is not certain, for some versions (None: an unknown one), that containerd would ask as it did before.
NOT_SURE: dict[str, set[str | None]] = {
    "byte-order mark": {None, "2.0.0"},  # which containerd 2.x can't read
    "byte-order mark, dotted": {None, "2.0.0"},
    "inline below the parent": {None, "1.7.2"},  # which containerd 1.x asks in any order
    "dotted": {None},  # which containerd 2.x overlooks
    "dotted, inline": {None, "1.7.2"},
    "what newer ones know": {None, "1.7.2", "2.0.0"},  # and these can't use
}
SURE = [
    pytest.param(content, others, version, id=f"{name}-{version}")
    for name, (content, others) in FILES.items()
    for version in (None, "1.7.2", "2.0.0")
    if version not in NOT_SURE.get(name, ())
]
LEFT = [(FILES[name][0], version) for name, versions in NOT_SURE.items() for version in sorted(versions, key=str)]


def files(root: Path, *registries: str, **options: Any) -> HostsFiles:
    return HostsFiles(MIRROR, config_path=[root], registries=registries, **options)


def document(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text("utf-8-sig"))


@pytest.mark.parametrize(("before", "version"), LEFT)
def test_what_is_not_certain_is_left_alone(before: bytes, version: str | None, tmp_path: Path) -> None:
    make(tmp_path, {"docker.io/hosts.toml": before})
    was = snapshot(tmp_path)
    outcome = files(tmp_path, "docker.io", version=version).apply()
    assert (len(outcome.problems), outcome.changes) == (1, ())
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize(("before", "others", "version"), SURE)
def test_peili_is_first_and_the_rest_is_as_it_was(
    before: bytes, others: list[str], version: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make(tmp_path, {"docker.io/hosts.toml": before})
    was, meant = snapshot(tmp_path), document(file)
    changed = files(tmp_path, "docker.io", version=version)
    outcome = changed.apply()
    assert ([each.file for each in outcome.changes], outcome.problems) == ([file], ())
    means = document(file)
    assert {*means["host"]} == {MIRROR, *others}
    if version != "2.0.0":  # which looks at table headers only
        assert list(means["host"]) == [MIRROR, *others]
    assert means["host"].pop(MIRROR) == OURS
    assert {**means, "host": means["host"] or meant.get("host", {})} == {**meant, "host": meant.get("host", {})}
    assert changed.show()[0].is_first
    assert changed.remove().problems == ()
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize("before", [before for before, _ in FILES.values()], ids=FILES)
def test_applying_twice_writes_nothing(before: bytes, tmp_path: Path) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make(tmp_path, {"docker.io/hosts.toml": before})
    files(tmp_path).apply()
    known = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (file, tmp_path, file.parent)]
    assert files(tmp_path).apply().changes == ()
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (file, tmp_path, file.parent)] == known


def test_another_url_or_other_capabilities_replace_what_stood_there(tmp_path: Path) -> None:
    make(tmp_path, {"docker.io/hosts.toml": FULL})
    was = snapshot(tmp_path)
    files(tmp_path).apply()
    other = HostsFiles("http://127.0.0.1:5060", config_path=[tmp_path], capabilities=["pull", "resolve"])
    assert len(other.apply().changes) == 2
    hosts = document(tmp_path / "docker.io/hosts.toml")["host"]
    assert list(hosts)[:2] == ["http://127.0.0.1:5060", "https://harbor.example/v2/hub"]
    assert hosts["http://127.0.0.1:5060"] == {"capabilities": ["pull", "resolve"]}
    files(tmp_path).remove()  # however it was configured
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize(
    ("version", "known"), [(None, False), ("1.7.9", False), ("2.0.5", False), ("v2.1.0-rc.1", True)]
)
def test_a_dial_timeout_is_written_for_those_that_know_it(version: str | None, known: bool, tmp_path: Path) -> None:
    files(tmp_path, "docker.io", version=version, dial_timeout="300ms").apply()
    table = document(tmp_path / "docker.io/hosts.toml")["host"][MIRROR]
    assert table == ({**OURS, "dial_timeout": "300ms"} if known else OURS)


CERTIFICATES: Tree = {"r_5000_/ca.crt": b"", "r_5000_/b.crt": b"", "r_5000_/c.cert": b"", "r_5000_/c.key": b""}


def test_docker_style_certificates_stay_in_force(tmp_path: Path) -> None:
    make(tmp_path, {**CERTIFICATES, "r_5000_/d.cert": b"", "r_5000_/e.key": b"", "r_5000_/x.crt/y": b""})
    was = snapshot(tmp_path)
    files(tmp_path, "r:5000").apply()
    assert document(tmp_path / "r_5000_/hosts.toml") == {
        "ca": ["b.crt", "ca.crt"],
        "client": [["c.cert", "c.key"], ["d.cert", "d.cert"]],  # a certificate without a key has it inside
        "host": {MIRROR: OURS},
    }
    files(tmp_path).remove()
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize(("version", "named"), [("1.6.20~ds1", True), ("2.0.0", False)])
def test_certificates_beside_a_file_that_containerd_1_ignores_stay_in_force(
    version: str, named: bool, tmp_path: Path
) -> None:
    make(tmp_path, {**CERTIFICATES, "r_5000_/hosts.toml": b"server = 'https://r:5000'\n"})
    was = snapshot(tmp_path)
    files(tmp_path, "r:5000", version=version).apply()
    means = document(tmp_path / "r_5000_/hosts.toml")
    assert means.get("ca") == (["b.crt", "ca.crt"] if named else None)
    assert means.get("client") == ([["c.cert", "c.key"]] if named else None)
    files(tmp_path).remove()
    assert snapshot(tmp_path) == was


@pytest.mark.parametrize("version", ["1.6.20~ds1", None])
@pytest.mark.parametrize("content", ["server = 'https://elsewhere'", "skip_verify = true", "ca = 'own.pem'"])
def test_what_containerd_1_ignores_does_not_begin_to_count(content: str, version: str | None, tmp_path: Path) -> None:
    """It would be asked for with our host in the file, and nobody knows whether it works."""
    make(tmp_path, {**CERTIFICATES, "r_5000_/hosts.toml": content.encode()})
    was = snapshot(tmp_path)
    (problem,) = files(tmp_path, "r:5000", version=version).apply().problems
    assert "containerd 1.x ignores hosts.toml, because it has no table [host" in problem.reason
    assert snapshot(tmp_path) == was


def test_a_registry_s_own_directory_keeps_what_default_said(tmp_path: Path) -> None:
    """Else it would lose the mirrors and certificates that it had by ``_default``."""
    make(tmp_path, {"_default/hosts.toml": FULL, "_default/a.pem": b""})
    was = snapshot(tmp_path)
    files(tmp_path, "ghcr.io").apply()
    means, default = document(tmp_path / "ghcr.io/hosts.toml"), document(tmp_path / "_default/hosts.toml")
    assert list(means["host"]) == [MIRROR, "https://harbor.example/v2/hub", "https://far.example"]
    assert MIRROR not in default["host"]
    harbor = means["host"]["https://harbor.example/v2/hub"]
    assert harbor["ca"] == [f"{tmp_path}/_default/a.pem", "/etc/b.pem"]
    assert harbor["client"] == [[f"{tmp_path}/_default/c.cert", f"{tmp_path}/_default/c.key"]]
    assert harbor["header"] == default["host"]["https://harbor.example/v2/hub"]["header"]
    assert (means["server"], means["ca"]) == (default["server"], f"{tmp_path}/_default/ca.pem")
    assert files(tmp_path, "ghcr.io").apply().changes == ()
    (tmp_path / "_default/hosts.toml").write_bytes(HARBOR)
    files(tmp_path).apply()  # takes up what was changed there
    assert list(document(tmp_path / "ghcr.io/hosts.toml")["host"]) == [MIRROR, "https://harbor.example/v2/hub"]
    (tmp_path / "_default/hosts.toml").write_bytes(FULL)
    files(tmp_path).remove()
    assert snapshot(tmp_path) == was


def test_certificates_of_default_are_kept_too(tmp_path: Path) -> None:
    make(tmp_path, {"_default/ca.crt": b""})
    files(tmp_path, "ghcr.io").apply()
    assert document(tmp_path / "ghcr.io/hosts.toml")["ca"] == [f"{tmp_path}/_default/ca.crt"]


def test_every_registry_means_default_and_each_that_has_a_directory(tmp_path: Path) -> None:
    make(tmp_path, {"docker.io/hosts.toml": HARBOR, "r:5000/ca.crt": b"", "empty.example": None, ".hidden": None})
    make(tmp_path, {"not-a-directory": b""})
    was = snapshot(tmp_path)
    outcome = files(tmp_path).apply()
    assert [str(each.file.relative_to(tmp_path)) for each in outcome.changes] == [
        f"{name}/hosts.toml" for name in ("docker.io", "empty.example", "r:5000", "_default")
    ]
    files(tmp_path).remove()
    assert snapshot(tmp_path) == was


def test_only_the_chosen_registries_are_touched(tmp_path: Path) -> None:
    make(tmp_path, {f"{name}/hosts.toml": HARBOR for name in ("a.example", "b.example", "c.example_5000_")})
    files(tmp_path).apply()
    assert [each.file.parent.name for each in files(tmp_path, "c.example:5000", "_default").remove().changes] == [
        "c.example_5000_",
        "_default",
    ]
    assert MIRROR in document(tmp_path / "a.example/hosts.toml")["host"]


class TestSeveralFolders:
    """containerd takes the first folder that has the registry, or a ``_default``."""

    def test_each_file_is_changed_where_containerd_finds_it(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make(one, {"a.example/hosts.toml": HARBOR})
        make(two, {"a.example/hosts.toml": HARBOR, "b.example/ca.crt": b""})
        was = snapshot(tmp_path)
        both = HostsFiles(MIRROR, config_path=[f"{one}:{two}"])
        made = [str(each.file.relative_to(tmp_path)) for each in both.apply().changes]
        # A _default in the first folder would hide all of the second.
        assert made == ["one/a.example/hosts.toml", "two/b.example/hosts.toml", "two/_default/hosts.toml"]
        assert HostsFiles(MIRROR, config_path=[one, two]).apply().changes == ()
        both.remove()
        assert snapshot(tmp_path) == was

    def test_what_a_default_hides_is_not_touched(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make(one, {"_default/hosts.toml": HARBOR})
        make(two, {"a.example/hosts.toml": FULL})
        both = HostsFiles(MIRROR, config_path=[one, two])
        assert [each.file for each in both.apply().changes] == [one / "_default/hosts.toml"]
        assert "never uses this directory" in both.show()[1].notes[0]

    def test_one_that_we_made_earlier_takes_up_what_it_hides_now(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make(two, {"a.example/hosts.toml": HARBOR})
        one.mkdir()
        was = snapshot(tmp_path)
        HostsFiles(MIRROR, config_path=[one], registries=["a.example"]).apply()
        both = HostsFiles(MIRROR, config_path=[one, two], registries=["a.example"])
        assert [each.file for each in both.apply().changes] == [one / "a.example/hosts.toml"]
        assert len(document(one / "a.example/hosts.toml")["host"]) == 2
        both.remove()
        assert snapshot(tmp_path) == was

    def test_a_new_directory_is_made_where_nothing_comes_before_it(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        make(two, {"_default/hosts.toml": HARBOR})
        both = HostsFiles(MIRROR, config_path=[one, two], registries=["new.example"])
        assert [each.file for each in both.apply().changes] == [two / "new.example/hosts.toml"]
        assert len(document(two / "new.example/hosts.toml")["host"]) == 2


def test_directories_that_were_not_there_are_gone_again_whoever_goes_last(tmp_path: Path) -> None:
    root = tmp_path / "etc/containerd/certs.d"
    (tmp_path / "etc").mkdir()
    was = snapshot(tmp_path)
    names = ["a.example", "b.example", "_default"]
    for order in (names, names[::-1]):
        for name in names:
            files(root, name).apply()
        for name in order:
            assert root.exists()
            files(root, name).remove()
        assert snapshot(tmp_path) == was


def test_a_directory_that_others_put_something_into_stays(tmp_path: Path) -> None:
    root = tmp_path / "certs.d"
    files(root).apply()
    (root / "_default/ca.crt").touch()
    assert document(root / "_default/hosts.toml") == {"host": {MIRROR: OURS}}
    files(root).apply()  # from now on it counts
    assert document(root / "_default/hosts.toml") == {"ca": ["ca.crt"], "host": {MIRROR: OURS}}
    files(root).remove()
    assert [path.name for path in (root / "_default").iterdir()] == ["ca.crt"]


def test_modes_and_owners_are_kept_and_new_files_can_be_read_by_all(tmp_path: Path) -> None:
    file = tmp_path / "docker.io/hosts.toml"
    make(tmp_path, {"docker.io/hosts.toml": HARBOR})
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12, 34)
    was = snapshot(tmp_path)
    old = os.umask(0o077)
    try:
        files(tmp_path).apply()
    finally:
        os.umask(old)
    known, new = file.stat(), tmp_path / "_default"
    assert (known.st_mode, known.st_uid, known.st_gid) == was["docker.io/hosts.toml"][:3]
    assert stat.S_IMODE(new.stat().st_mode) == 0o755
    assert stat.S_IMODE((new / "hosts.toml").stat().st_mode) == 0o644
    files(tmp_path).remove()
    assert snapshot(tmp_path) == was


def test_the_file_behind_a_symbolic_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    make(tmp_path, {"kept/by-somebody.toml": HARBOR, "certs.d/docker.io/hosts.toml": "../../kept/by-somebody.toml"})
    make(tmp_path, {"certs.d/also": "docker.io"})
    was = snapshot(tmp_path)
    assert len(files(tmp_path / "certs.d").apply().changes) == 2
    assert next(iter(document(tmp_path / "kept/by-somebody.toml")["host"])) == MIRROR
    assert files(tmp_path / "certs.d").apply().changes == ()
    files(tmp_path / "certs.d").remove()
    assert snapshot(tmp_path) == was


def test_a_dry_run_shows_the_changes_and_makes_none(tmp_path: Path) -> None:
    make(tmp_path, {"docker.io/hosts.toml": b'server = "https://s"'})
    was = snapshot(tmp_path)
    outcome = files(tmp_path, version="2.0.0").apply(dry_run=True)
    assert snapshot(tmp_path) == was
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
def test_what_is_wrong_is_told_at_once(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostsFiles(**{"mirror": MIRROR, **options})
    assert caught.value.key == key


def test_where_nobody_says_where_to_look_it_is_where_containerd_does() -> None:
    usual, dockers = Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d")
    assert HostsFiles(MIRROR).roots == HostsFiles(MIRROR, version="1.7.0").roots == (usual,)
    assert HostsFiles(MIRROR).for_version("2.1.0").roots == (usual, dockers)
