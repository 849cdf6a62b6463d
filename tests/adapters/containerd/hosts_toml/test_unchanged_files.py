"""A file that cannot be changed safely stays unchanged and is named in the outcome; the others are changed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.directories import open_directory
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import HostsFiles
from peili.adapters.files import atomic

MIRROR = "http://127.0.0.1:5050"
REJECTED = "containerd ignores the file: "
AMBIGUOUS = "peili cannot tell how containerd reads it: "

BAD: dict[str, tuple[bytes, str]] = {
    "not TOML": (b"server = ", f"{AMBIGUOUS}not TOML: Invalid value (at end of document)"),
    "not UTF-8": (b"server = '\xff'", f"{AMBIGUOUS}not UTF-8 text, at byte 10"),
    "too deep": (b"x = " + b"[" * 5000, f"{AMBIGUOUS}not TOML"),
    "too large a number": (b"x = " + b"9" * 5000, f"{AMBIGUOUS}not TOML"),
    "too long": (b"# " + b"x" * 200_000, f"{AMBIGUOUS}it has more than 128 Ki characters"),
    "a date": (b"x = 2024-01-01", f"{AMBIGUOUS}line 1 has a value"),
    "a negative time": (b"[host.a]\ndial_timeout = '-1s'", f"{AMBIGUOUS}host.'a'.dial_timeout is negative"),
    "a URL with a user": (b"[host.'https://me@m']", f"{AMBIGUOUS}host 'https://me@m' is not a plain URL"),
    "another case": (b"[host.a]\nSkip_verify = true", f"{AMBIGUOUS}host.'a'.Skip_verify must be written in lower case"),
    "a header's line end": (b'[host.a.header]\nx = "a\\nb"', f"{AMBIGUOUS}host.'a'.header.'x' cannot be sent"),
    "hosts in one value": (
        b"host = {'https://m' = {}}",
        "peili cannot put a host in front of the others; write each",
    ),
    "host is not a table": (b"host = 3", f"{REJECTED}host must be a table for each host"),
    "a host that is not a table": (b"[host]\n'https://m' = 3", f"{REJECTED}host.'https://m' must be a table"),
    "a list of tables": (b"[[host]]\nx = 1", f"{REJECTED}host must be a table for each host"),
    "server": (b"server = 3", f"{REJECTED}server must be a string"),
    "capabilities": (b"[host.a]\ncapabilities = ['fly']", f"{REJECTED}host.'a'.capabilities must be a list of pull, "),
    "ca": (b"ca = [3]", f"{REJECTED}ca must be a path or a list of paths"),
    "client": (b"client = [['a', 'b', 'c']]", f"{REJECTED}client must be a path, or a list of paths or of pairs"),
    "skip_verify": (b"skip_verify = 'no'", f"{REJECTED}skip_verify must be true or false"),
    "header": (b"[host.a.header]\nx = 3", f"{REJECTED}host.'a'.header must be a table of strings"),
    "override_path": (b"[host.a]\noverride_path = 1", f"{REJECTED}host.'a'.override_path must be true or false"),
    "dial_timeout": (b"[host.a]\ndial_timeout = 1", f"{REJECTED}host.'a'.dial_timeout must be a string"),
    "damaged comment lines": (b"# <<< peili hosts <<<\n", "the comment lines around peili's section are damaged"),
    "not the first": (
        f"[host.'https://m']\n[host.'{MIRROR}']".encode(),
        f"it contains {MIRROR} already, but not as the first host; move it up",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_changed_is_named_and_the_others_are_changed(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    make_tree(tmp_path, {"a.example/hosts.toml": content, "b.example/hosts.toml": b"[host.'https://m']\n"})
    original = snapshot(tmp_path)
    hosts = HostsFiles(MIRROR, config_path=[tmp_path])
    outcome = hosts.apply()
    assert [each.file.parent.name for each in outcome.changes] == ["b.example", "_default"]
    (problem,) = outcome.problems
    assert str(problem).startswith(f"{tmp_path}/a.example/hosts.toml: not changed: {reason}")
    assert "\n" not in str(problem)
    assert (tmp_path / "a.example/hosts.toml").read_bytes() == content
    hosts.remove()
    assert snapshot(tmp_path) == original


def test_a_mirror_added_first_by_hand_is_neither_repeated_nor_removed(tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": f"[host.'{MIRROR}']\n[host.'https://m']\n".encode()})
    original = snapshot(tmp_path)
    hosts = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"])
    assert (hosts.apply().changes, hosts.apply().problems, hosts.remove().changes) == ((), (), ())
    assert snapshot(tmp_path) == original


def test_a_default_that_cannot_be_read_is_named_if_it_must_be_copied(tmp_path: Path) -> None:
    make_tree(tmp_path, {"_default/hosts.toml": b"server = "})
    outcome = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"]).apply()
    assert [each.path for each in outcome.problems] == [tmp_path / "_default/hosts.toml"]
    assert not (tmp_path / "docker.io").exists()


def test_a_link_to_nothing_and_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.example/hosts.toml": "/nowhere/hosts.toml", "b.example/hosts.toml": None, "c.example": b""})
    original = snapshot(tmp_path)
    hosts = HostsFiles(MIRROR, config_path=[tmp_path], registries=["a.example", "b.example", "c.example"])
    assert [str(each) for each in hosts.apply().problems] == [
        f"{tmp_path}/a.example/hosts.toml: not changed: it is a symbolic link to a file that does not exist",
        f"{tmp_path}/b.example/hosts.toml: not changed: Is a directory",
        f"{tmp_path}/c.example/hosts.toml: not changed: its directory is a file",
    ]
    assert snapshot(tmp_path) == original


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_without_permission_nothing_changes_and_each_file_is_named() -> None:
    script = (
        "import os, sys; from peili.adapters.containerd import HostsFiles; os.setuid(65534);"
        f"print(*HostsFiles({MIRROR!r}, config_path=[sys.argv[1]]).apply().problems, sep='\\n')"
    )
    with open_directory() as folder:
        make_tree(folder, {"docker.io/hosts.toml": b"[host.'https://m']\n"})
        original = snapshot(folder)
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [
            f"{folder}/docker.io/hosts.toml: not changed: Permission denied",
            f"{folder}/_default/hosts.toml: not changed: Permission denied",
        ]
        assert snapshot(folder) == original


def test_after_a_failed_write_the_old_file_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": b"[host.'https://m']\n"})
    original = snapshot(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = HostsFiles(MIRROR, config_path=[tmp_path]).apply()
    assert {each.reason for each in outcome.problems} == {"not changed: No space left on device"}
    assert (len(outcome.problems), outcome.changes) == (2, ())
    assert snapshot(tmp_path) == original


def test_two_runs_wait_for_each_other_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "LOCK_TIMEOUT", 0.1)
    hosts = HostsFiles(MIRROR, config_path=[tmp_path / "certs.d"])
    with atomic.lock([tmp_path / "certs.d"]):
        (problem,) = hosts.apply().problems
        assert f"another process holds the lock on {tmp_path}" in problem.reason
        assert hosts.apply(dry_run=True).problems == ()
    assert hosts.apply().problems == ()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock was released
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "content",
    [
        b"host.'http://a\"\"'.skip_verify = true\n",
        b"[host]\n'\"a' = {}\n[host.b]\n",
        b"[server.'http://a']\n[host.b]\n",
        b"host.'http://a'.capabilities = ['fly']\n[host.b]\n",
        b"[host.b]\nhost.'http://a'. skip_verify = true\n",
    ],
)
@pytest.mark.parametrize("version", ["1.6.20", "2.1.4", None])
def test_no_content_raises_an_exception(content: bytes, version: str | None, tmp_path: Path) -> None:
    """Comparisons with containerd's own parsers on random files found these."""
    make_tree(tmp_path, {"docker.io/hosts.toml": content})
    hosts = HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"], version=version)
    hosts.show()
    hosts.apply()
    hosts.show()
    hosts.remove()
    assert (tmp_path / "docker.io/hosts.toml").read_bytes() == content


def test_a_loop_of_links_is_named_in_the_outcome(tmp_path: Path) -> None:
    make_tree(tmp_path, {"r.example/hosts.toml": "hosts.toml", "s.example": "s.example"})
    hosts = HostsFiles(MIRROR, config_path=[tmp_path], version="2.0.0")
    assert [each.reason for each in hosts.apply().problems] == ["not changed: Too many levels of symbolic links"]
    hosts.remove()
    assert [each.name for each in tmp_path.iterdir() if not each.is_symlink()] == ["r.example"]


def test_a_link_to_something_else_than_a_file_stays_as_it_is(tmp_path: Path) -> None:
    """People switch a file off with a link to ``/dev/null``. A FIFO stands for it: a program that opens one waits."""
    make_tree(tmp_path, {"docker.io/hosts.toml": "../fifo", "b.example/hosts.toml": b"[host.'https://m']\n"})
    os.mkfifo(tmp_path / "fifo")
    before = snapshot(tmp_path)
    files = HostsFiles(MIRROR, config_path=[tmp_path], version="2.1.0")
    outcome = files.apply()
    assert [str(each) for each in outcome.problems] == [
        f"{tmp_path}/docker.io/hosts.toml: not changed: {AMBIGUOUS}it is not a regular file"
    ]
    assert {each.file.parent.name for each in outcome.changes} == {"b.example", "_default"}
    shown = {each.registry: each for each in files.show()}
    assert shown["docker.io"].is_uncertain
    assert not files.upstream_roots("docker.io")[0].is_mirror
    files.remove()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("settings", ["ca = 'fifo'", 'ca = "a\\u0000b"', "client = [['fifo', 'fifo']]"])
def test_a_certificate_that_is_no_file_is_reported(settings: str, tmp_path: Path) -> None:
    make_tree(tmp_path, {"docker.io/hosts.toml": f"[host.'https://m']\n{settings}\n".encode()})
    os.mkfifo(tmp_path / "docker.io" / "fifo")
    [shown] = HostsFiles(MIRROR, config_path=[tmp_path], version="2.1.0").show()
    assert shown.is_uncertain or shown.is_broken
    assert len(shown.notes) == 1
