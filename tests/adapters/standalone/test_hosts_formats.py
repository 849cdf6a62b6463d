"""`peili hosts --format k3s` and `--format talos`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adapters.k3s.yamls import PRIVATE, REWRITE
from tests.adapters.talos.test_patches import NEW, OLD

from peili.adapters.k3s import registries_file
from peili.adapters.standalone.cli import main
from peili.adapters.talos import merge_patch, parse_config

PEILI = "http://127.0.0.1:5050"


@pytest.fixture
def registries(tmp_path: Path) -> Path:
    file = tmp_path / "rke2/registries.yaml"
    file.parent.mkdir()
    file.write_text(PRIVATE)
    return file


def test_k3s_apply_show_and_remove(registries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--format", "k3s", "--file", str(registries))
    restart = "it takes effect when rke2 is restarted (systemctl restart rke2-server or rke2-agent)\n"
    assert main(["hosts", "apply", *where, "--dry-run"]) == 0
    assert f'+      - "{PEILI}" # added by peili\n' in capsys.readouterr().out
    assert registries.read_text() == PRIVATE
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr() == (f"changed {registries}\n{restart}", "")
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr() == (f"nothing to do in {registries}: peili is in front already\n", "")
    assert main(["hosts", "show", *where]) == 0
    assert capsys.readouterr().out == (
        f"{registries}\n\n*\n  1. {PEILI} (peili)\n  2. the registry itself\n\n"
        f"docker.io\n  1. {PEILI} (peili)\n  2. https://mycustomreg.com:5000\n  3. the registry itself\n\n"
        "mycustomreg:5000\n  1. the registry itself\n"
        "  Note: * does not apply to it, because it has an entry under configs; to put peili in front, use "
        "--registry.\n"
    )
    assert main(["hosts", "show", "--json", *where]) == 0
    shown = json.loads(capsys.readouterr().out)["files"][str(registries)]
    assert [each["peili_first"] for each in shown] == [True, True, False]
    assert main(["hosts", "remove", *where, "--registry", "_default"]) == 0
    assert main(["hosts", "remove", *where]) == 0
    assert registries.read_text() == PRIVATE
    capsys.readouterr()
    assert main(["hosts", "remove", *where]) == 0
    assert capsys.readouterr() == (f"nothing to do in {registries}: there is nothing of peili's\n", "")


def test_k3s_finds_the_files_of_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tuple(tmp_path / product / "registries.yaml" for product in ("k3s", "rke2"))
    monkeypatch.setattr(registries_file, "FILES", files)
    assert main(["hosts", "apply", "--format", "k3s"]) == 1
    assert capsys.readouterr().err == "peili: neither /etc/rancher/k3s nor /etc/rancher/rke2 is there; use --file\n"
    for file in files:
        file.parent.mkdir()
    files[1].write_text(REWRITE)
    assert main(["hosts", "apply", "--format", "k3s", "--registry", "docker.io"]) == 0
    assert all(PEILI in file.read_text() for file in files)
    assert main(["hosts", "remove", "--format", "k3s"]) == 0
    assert not files[0].exists()
    assert files[1].read_text() == REWRITE


def test_k3s_names_a_file_that_it_cannot_edit(registries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registries.write_text("mirrors: 7\n")
    for action in ("apply", "remove", "show"):
        assert main(["hosts", action, "--format", "k3s", "--file", str(registries)]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        reason = "" if action == "show" else "not changed: "
        assert output.err == f"peili: {registries}: {reason}mirrors: must be a mapping of registries\n"


def talos(action: str, configuration: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peili.adapters.standalone", "hosts", action, "--format", "talos", *arguments]
    return subprocess.run(command, input=configuration, capture_output=True, text=True, timeout=60, check=False)


def test_talos_prints_a_patch_for_the_configuration_that_it_reads() -> None:
    done = talos("apply", OLD + NEW, "--registry", "docker.io")
    assert (done.returncode, done.stderr) == (0, "")
    [first, *others] = merge_patch(parse_config(OLD + NEW), done.stdout)["docker.io"].endpoints
    assert first.url == PEILI
    assert [each.url for each in others] == [
        "https://harbor.example/v2/proxy-docker.io",
        "https://my-mirror.local:5000",
    ]


def test_talos_removes_peili_and_says_if_there_is_nothing_to_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text(OLD + NEW.replace("endpoints:\n", f"endpoints:\n  - url: {PEILI}\n"))
    where = ("--format", "talos", "--file", str(file))
    assert main(["hosts", "show", *where]) == 0
    assert capsys.readouterr().out == (
        "ghcr.io\n  1. https://harbor.example/v2/proxy-ghcr.io (overridePath)\n\n"
        f"docker.io\n  1. {PEILI} (peili)\n"
        "  2. https://harbor.example/v2/proxy-docker.io (overridePath)\n  3. https://my-mirror.local:5000\n"
    )
    assert main(["hosts", "show", "--json", *where]) == 0
    shown = json.loads(capsys.readouterr().out)["registries"]
    assert [(each["registry"], each["peili_first"], each["skipFallback"]) for each in shown] == [
        ("ghcr.io", False, True),
        ("docker.io", True, True),
    ]
    assert main(["hosts", "remove", *where]) == 0
    assert merge_patch(parse_config(file.read_text()), capsys.readouterr().out) == parse_config(OLD + NEW).mirrors
    file.write_text(OLD)
    assert main(["hosts", "remove", *where]) == 0
    assert capsys.readouterr() == ("", "nothing to do: there is no patch\n")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--format", "talos", "--file", "{}/none"], 1, "{}/none: can't be read: No such file or directory"),
        (["--format", "talos", "--file", "{}"], 1, "{}: can't be read: Is a directory"),
        (["--format", "k3s", "--config-path", "/etc"], 2, "--config-path: only with --format containerd"),
        (["--format", "talos", "--containerd-version", "2"], 2, "--containerd-version: only with --format containerd"),
        (["--file", "a"], 2, "--file: only with --format k3s or talos; for hosts.toml, use --config-path"),
        (
            ["--format", "k3s", "--file", "{}/hosts.toml"],
            2,
            "--file: a registries.yaml; k3s or RKE2 generates {}/hosts.toml from it at each start",
        ),
        (
            ["--format", "k3s", "--file", "{}/a", "--registry", "a/b"],
            2,
            "--registry: host names such as docker.io, not 'a/b'",
        ),
    ],
)
def test_a_wrong_value_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str
) -> None:
    assert main(["hosts", "apply", *(each.format(tmp_path) for each in arguments)]) == code
    assert capsys.readouterr() == ("", f"peili: {line.format(tmp_path)}\n")


def test_the_registries_of_the_configuration_are_the_default(registries: Path, tmp_path: Path) -> None:
    config = tmp_path / "peili.toml"
    config.write_text('[hosts]\nregistries = ["docker.io", "_default"]\n[local]\nlisten = "127.0.0.1:7000"\n')
    assert main(["hosts", "apply", "--format", "k3s", "--file", str(registries), "--config", str(config)]) == 0
    assert registries.read_text().count('- "http://127.0.0.1:7000" # added by peili') == 2
    assert '"*": # added by peili' in registries.read_text()


@pytest.mark.parametrize("kind", ["k3s", "talos"])
def test_without_the_extra_the_error_says_what_to_install(kind: str) -> None:
    program = (
        "import sys; sys.modules['ruamel.yaml'] = None; from peili.adapters.standalone.cli import main;"
        f"sys.exit(main(['hosts', 'show', '--format', '{kind}']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "peili: files of k3s and Talos need ruamel.yaml: install peili[command]\n"


@pytest.mark.parametrize("product", ["k3s", "rke2"])
def test_a_directory_that_k3s_generates_is_refused_with_the_right_command(
    product: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / product / "agent/etc/containerd/certs.d"
    folder.mkdir(parents=True)
    expected = f"a directory that k3s and RKE2 do not generate, not {folder}; run: peili hosts apply --format k3s\n"
    for flag, value, named in (
        ("--config-path", str(folder), "--config-path"),
        ("--set", f'hosts.config_path=["{folder}"]', "--set: hosts.config_path"),
    ):
        assert main(["hosts", "apply", flag, value, "--containerd-version", "2.0.0"]) == 2
        assert capsys.readouterr() == ("", f"peili: {named}: {expected}")
    assert list(folder.iterdir()) == []


def test_the_k3s_adapter_does_not_import_the_containerd_adapter() -> None:
    program = (
        "import sys; from peili.adapters.k3s import RegistriesFile, command;"
        "assert 'peili.adapters.containerd' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
