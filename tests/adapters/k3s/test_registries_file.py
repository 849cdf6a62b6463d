"""`RegistriesFile` on disk: files that are created, changed, deleted or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.adapters.k3s.yamls import DOCUMENTED, EMBEDDED, ONLY_CONFIGS, PEILI, PRIVATE, REWRITE

from peili.adapters.k3s import RegistriesFile
from peili.mirror import ConfigError


@pytest.fixture(params=["k3s", "rke2"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "etc/rancher" / str(request.param)
    directory.mkdir(parents=True)
    return directory / "registries.yaml"


def state(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir()}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_remove_restores_the_content_the_mode_and_the_owner(file: Path, name: str) -> None:
    file.write_text(DOCUMENTED[name])
    file.chmod(0o640)
    os.chown(file, os.getuid(), os.getgid())
    before = state(file.parent)
    subject = RegistriesFile(PEILI, file=file)
    [change] = subject.apply().changes
    assert change.after == file.read_bytes() != before[file.name]
    assert subject.apply() == subject.apply(dry_run=True)
    assert not subject.apply().changes
    assert file.stat().st_mode & 0o777 == 0o640
    [change] = subject.remove().changes
    assert not subject.remove().changes
    assert state(file.parent) == before
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_missing_file_is_created_and_deleted_again(file: Path) -> None:
    subject = RegistriesFile(PEILI, file=file)
    assert not subject.remove().changes
    [change] = subject.apply().changes
    assert str(change) == f"created {file}"
    assert "*:" not in file.read_text(), "which would be an alias"
    assert not subject.apply().changes
    subject.remove()
    assert state(file.parent) == {}


def test_an_empty_file_is_empty_again_after_remove(file: Path) -> None:
    file.touch()
    subject = RegistriesFile(PEILI, file=file)
    assert subject.apply().changes
    subject.remove()
    assert state(file.parent) == {"registries.yaml": b""}


def test_what_others_add_to_a_file_that_peili_created_stays(file: Path) -> None:
    subject = RegistriesFile(PEILI, file=file)
    subject.apply()
    with file.open("a") as opened:
        opened.write(ONLY_CONFIGS)
    subject.apply()
    subject.remove()
    assert file.read_text() == ONLY_CONFIGS


def test_a_dry_run_shows_the_changes_and_writes_nothing(file: Path) -> None:
    file.write_text(PRIVATE)
    before = state(file.parent)
    [change] = RegistriesFile(PEILI, file=file, registries=["docker.io"]).apply(dry_run=True).changes
    assert f'+      - "{PEILI}" # added by peili\n' in change.diff()
    assert len([line for line in change.diff().splitlines() if line.startswith(("+", "-"))]) == 3, "with both names"
    assert state(file.parent) == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"mirrors: [", "not changed: can't be read as YAML: line 1, column 11: expected the node content, but found "),
        (b"\xff\xfe", "not changed: it is not UTF-8"),
        (b"#" * (1 << 20) + b"#", "not changed: more than 1 MiB"),
    ],
)
def test_an_unreadable_file_is_named_and_not_changed(file: Path, content: bytes, why: str) -> None:
    file.write_bytes(content)
    subject = RegistriesFile(PEILI, file=file)
    for outcome in (subject.apply(), subject.remove(), subject.apply(dry_run=True)):
        assert not outcome.changes
        [problem] = outcome.problems
        assert str(problem).startswith(f"{file}: {why}")
    assert state(file.parent) == {"registries.yaml": content}


def test_the_target_of_a_link_is_changed_and_the_link_stays(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared.yaml"
    target.write_text(EMBEDDED)
    file.symlink_to(target)
    RegistriesFile(PEILI, file=file).apply()
    assert file.is_symlink()
    assert PEILI in target.read_text()
    target.unlink()
    [problem] = RegistriesFile(PEILI, file=file).apply().problems
    assert problem.reason == "not changed: a symbolic link that leads nowhere"


@pytest.mark.parametrize("name", ["config.yaml", "config.yaml.d/mirrors.yaml", "k3s.yaml"])
def test_other_files_of_k3s_are_refused(name: str, tmp_path: Path) -> None:
    """With mirrors in its config.yaml, k3s does not start."""
    with pytest.raises(
        ConfigError, match=rf"^file: a registries\.yaml; {tmp_path}/{name} is another file of k3s or RKE2$"
    ):
        RegistriesFile(PEILI, file=tmp_path / name)


def test_a_link_to_something_else_than_a_file_stays_as_it_is(file: Path, tmp_path: Path) -> None:
    """People switch a file off with a link to ``/dev/null``. A FIFO stands for it: a program that opens one waits."""
    os.mkfifo(tmp_path / "fifo")
    file.symlink_to(tmp_path / "fifo")
    subject = RegistriesFile(PEILI, file=file)
    for outcome in (subject.apply(), subject.remove()):
        assert [each.reason for each in outcome.problems] == ["not changed: not a regular file"]
    assert (tmp_path / "fifo").is_fifo()


def test_leftovers_of_an_interrupted_run_are_removed(file: Path) -> None:
    file.write_text(PRIVATE)
    subject = RegistriesFile(PEILI, file=file)
    subject.apply()
    (file.parent / ".registries.yaml.peili~").write_text("half of")
    subject.remove()
    assert state(file.parent) == {"registries.yaml": PRIVATE.encode()}


def test_leftovers_next_to_the_target_of_a_link_are_removed_too(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared" / "registries.yaml"
    target.parent.mkdir()
    target.write_text(PRIVATE)
    file.symlink_to(target)
    (target.parent / ".registries.yaml.peili~").write_text("half of")
    subject = RegistriesFile(PEILI, file=file)
    assert not subject.apply().problems
    assert PEILI in target.read_text()
    subject.remove()
    assert state(target.parent) == {"registries.yaml": PRIVATE.encode()}


@pytest.mark.parametrize(
    "generated",
    [
        "var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml",
        "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        "elsewhere/agent/etc/containerd/anything.yaml",
    ],
)
def test_files_that_k3s_generates_are_refused(tmp_path: Path, generated: str) -> None:
    with pytest.raises(ConfigError, match=r"^file: a registries.yaml; k3s or RKE2 generates .* from it at each start$"):
        RegistriesFile(PEILI, file=tmp_path / generated)


@pytest.mark.parametrize(
    ("mirror", "registries", "line"),
    [
        ("127.0.0.1:5050", (), "mirror: http://HOST:PORT, as containerd reaches the local door"),
        (PEILI, ("https://docker.io",), "registries: host names such as docker.io, not 'https://docker.io'"),
    ],
)
def test_a_wrong_value_is_one_line(mirror: str, registries: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RegistriesFile(mirror, registries=registries)
    assert str(raised.value) == line


@pytest.mark.parametrize("setting", ["config.yaml", "config.yaml.d/10-more.yaml"])
def test_no_registry_loses_its_only_source_if_k3s_does_not_fall_back(file: Path, setting: str) -> None:
    (file.parent / setting).parent.mkdir(exist_ok=True)
    (file.parent / setting).write_text("disable-default-registry-endpoint: true\n")
    file.write_text(PRIVATE)
    [problem] = RegistriesFile(PEILI, file=file).apply().problems
    assert problem.reason == (
        f"not changed: {file.parent / setting} has disable-default-registry-endpoint, so peili would be the only "
        "endpoint of *; add the registry's own URL to its endpoints, or choose other registries with --registry"
    )
    assert file.read_text() == PRIVATE
    named = RegistriesFile(PEILI, file=file, registries=["docker.io"])
    assert named.apply().changes, "it has an endpoint"
    assert not named.apply().problems


def test_show_lists_the_endpoints_and_remarks(file: Path, tmp_path: Path) -> None:
    file.write_text(
        REWRITE
        + 'configs: {"registry.example.com:5000": {tls: {ca_file: a}}, ghcr.io: {auth: {username: me}}, a.io: {}}\n'
    )
    subject = RegistriesFile(PEILI, file=file)
    assert [(each.registry, each.is_first) for each in subject.show()] == [("docker.io", False), ("ghcr.io", False)]
    subject.apply()
    every, docker, ghcr = subject.show(data_dir=tmp_path)
    assert (every.registry, every.endpoints, every.notes) == ("*", (PEILI,), ())
    assert str(docker) == (
        "docker.io\n"
        "  1. http://127.0.0.1:5050 (peili)\n"
        "  2. https://registry.example.com:5000\n"
        "  3. the registry itself\n"
        "  Note: k3s rewrites names for every endpoint, also for peili: content is found anyway, by its "
        "digest, but tags and peili's `exclude` see the rewritten name."
    )
    assert ghcr.notes == (
        "* does not apply to it, because it has an entry under configs; to put peili in front, use --registry",
    )


def test_show_says_whether_k3s_has_read_the_file(file: Path, tmp_path: Path) -> None:
    RegistriesFile(PEILI, file=file, registries=["*", "localhost:5000"]).apply()
    generated = tmp_path / "agent/etc/containerd/certs.d"
    for name in ("_default", "localhost:5000"):
        (generated / name).mkdir(parents=True)
    (generated / "_default/hosts.toml").write_text(f'[host]\n[host."{PEILI}/v2"]\n  capabilities = ["pull"]\n')
    (generated / "localhost:5000/hosts.toml").write_text('server = "http://localhost:5000/v2"\n')
    registry, every = RegistriesFile(PEILI, file=file).show(data_dir=tmp_path)
    assert every.notes == ()
    assert registry.notes == ("not in force yet: k3s and RKE2 read the file when they start",)
