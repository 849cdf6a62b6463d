"""`peili hosts`, and the section ``[hosts]`` of `peili serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.adapters.standalone.test_serve import Start, start
from tests.support.ports import free_port
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import HostsFiles
from peili.adapters.files.editor import Change, Problem
from peili.adapters.files.printing import OutcomePrinter
from peili.adapters.standalone.cli import main
from peili.adapters.standalone.hosts import mirror_url
from peili.adapters.standalone.parsing import parse_config
from peili.adapters.standalone.settings import Setting

__all__ = ["start"]

MIRRORED = b'[host."https://m.example"]\n'
OLD = ("--containerd-version", "1.6.20")
LONG_TIMEOUTS = ("--set=limits.start_timeout=60", "--set=limits.stop_timeout=60")  # other tests keep the disk busy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tree(tmp_path / "certs.d", {"docker.io/hosts.toml": MIRRORED})
    return tmp_path / "certs.d"


def test_apply_show_and_remove(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = snapshot(root)
    where = ("--config-path", str(root), *OLD)
    docker, default = root / "docker.io/hosts.toml", root / "_default/hosts.toml"
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr() == (f"changed {docker}\ncreated {default}\n", "")
    assert main(["hosts", "apply", *where]) == 0
    assert capsys.readouterr() == ("nothing to do: peili is in front already\n", "")
    assert main(["hosts", "show", *where]) == 0
    assert f"docker.io  ({root}/docker.io)\n  1. http://127.0.0.1:5050 (peili): pull\n" in capsys.readouterr().out
    assert main(["hosts", "show", "--json", *where]) == 0
    assert [each["peili_first"] for each in json.loads(capsys.readouterr().out)["registries"]] == [True, True]
    assert main(["hosts", "remove", *where, "--registry", "_default"]) == 0
    assert capsys.readouterr() == (f"removed {default}\n", "")
    assert main(["hosts", "remove", *where]) == 0
    assert capsys.readouterr() == (f"changed {docker}\n", "")
    assert main(["hosts", "remove", *where]) == 0
    assert capsys.readouterr() == ("nothing to do: there is nothing of peili's\n", "")
    assert snapshot(root) == was


def test_each_change_is_printed_when_it_is_made_and_a_terminal_shows_the_number_of_files(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree(root, {f"r{number}.example/hosts.toml": MIRRORED for number in range(300)})
    files = HostsFiles("http://127.0.0.1:5050", config_path=[root], version="1.6.20")
    printed: list[str] = []
    printer = OutcomePrinter(dry_run=False)

    def report(result: Change | Problem | None) -> None:
        printer(result)
        printed.append(capsys.readouterr().out)

    files.apply(report=report)
    assert len(printed) == 302  # docker.io and _default, too
    assert all(each.count("\n") == 1 for each in printed), "one line after each file"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    printer = OutcomePrinter(dry_run=False, silence=0)
    files.apply(report=printer)
    assert printer.end("nothing to do") == 0
    output = capsys.readouterr()
    assert output.out == "nothing to do\n"
    assert output.err.startswith("\r\x1b[Kfiles looked at: 1, changed: 0 …")
    assert output.err.endswith("\r\x1b[K")


def test_all_files_are_changed_although_nobody_reads_the_output(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root, {f"r{number}.example/hosts.toml": MIRRORED for number in range(3)})
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["hosts", "apply", "--config-path", str(root), *OLD]) == 141
    files = HostsFiles("http://127.0.0.1:5050", config_path=[root], version="1.6.20")
    assert [each.is_first for each in files.show()] == [True] * 5


def test_a_dry_run_is_a_diff_that_patch_understands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = snapshot(root)
    assert main(["hosts", "apply", "--config-path", str(root), "--dry-run", *OLD]) == 0
    diff = capsys.readouterr().out
    assert snapshot(root) == was
    assert f"--- {root}/docker.io/hosts.toml\n+++ {root}/docker.io/hosts.toml\n@@ -1 +1,5 @@\n+# >>> peili" in diff
    assert f"--- /dev/null\n+++ {root}/_default/hosts.toml\n" in diff


def test_an_unreadable_file_is_named_and_the_code_is_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "docker.io/hosts.toml").write_bytes(b"server = ")
    assert main(["hosts", "apply", "--config-path", str(root), *OLD]) == 1
    output = capsys.readouterr()
    assert output.out == f"created {root}/_default/hosts.toml\n"
    reason = "peili cannot tell how containerd reads it: not TOML: Invalid value (at end of document)"
    assert output.err == f"peili: {root}/docker.io/hosts.toml: not changed: {reason}\n"


def test_show_says_if_nothing_is_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hosts", "show", "--config-path", f"{tmp_path}/none", *OLD]) == 0
    assert capsys.readouterr().out == (
        f"nothing is configured in {tmp_path}/none: containerd asks each registry itself\n"
    )


def test_url_capabilities_folder_and_registries_come_from_the_mirror_s_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peili.toml"
    file.write_text(
        f"[local]\nlisten = '0.0.0.0:5060'\n[resolver]\nkind = 'local'\n"
        f"[hosts]\nconfig_path = ['{tmp_path}/certs.d']\nregistries = ['ghcr.io']\n"
    )
    assert main(["hosts", "apply", "--config", str(file), "--containerd-version", "2.1.0"]) == 0
    assert capsys.readouterr().out == f"created {tmp_path}/certs.d/ghcr.io/hosts.toml\n"
    written = (tmp_path / "certs.d/ghcr.io/hosts.toml").read_text().splitlines()
    assert written[1:-1] == [
        '[host."http://127.0.0.1:5060"]',
        'capabilities = ["pull", "resolve"]',
        'dial_timeout = "500ms"',
    ]


def test_a_mirror_for_some_registries_is_configured_for_these_only(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config-path", str(root), *OLD)
    assert main(["hosts", "apply", *where, "--set", 'mirror.registries=["docker.io"]']) == 0
    assert capsys.readouterr().out == f"changed {root}/docker.io/hosts.toml\n"
    assert main(["hosts", "apply", *where, "--registry", "_default"]) == 0
    assert main(["hosts", "remove", *where, "--set", 'mirror.registries=["docker.io"]']) == 0
    assert [path.name for path in root.iterdir()] == ["docker.io"]
    assert (root / "docker.io/hosts.toml").read_bytes() == MIRRORED


def test_a_mirror_for_a_wildcard_is_configured_for_every_registry(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config-path", str(root), *OLD)
    assert main(["hosts", "apply", *where, "--set", 'mirror.registries=["docker.io", "*.example.com"]']) == 0
    assert capsys.readouterr().out == f"changed {root}/docker.io/hosts.toml\ncreated {root}/_default/hosts.toml\n"


def test_the_registries_of_a_mirror_are_written_in_lower_case(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--config-path", str(root), *OLD)
    assert main(["hosts", "apply", *where, "--set", 'mirror.registries=["Docker.IO"]']) == 0
    assert capsys.readouterr().out == f"changed {root}/docker.io/hosts.toml\n"


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:5050", "http://127.0.0.1:5050"),
        (":5050", "http://127.0.0.1:5050"),
        ("0.0.0.0:5050", "http://127.0.0.1:5050"),
        ("[::]:5050", "http://[::1]:5050"),
        ("[fd00::1]:80", "http://[fd00::1]:80"),
        ("localhost:5050", "http://localhost:5050"),
    ],
)
def test_the_mirror_s_url_is_where_this_host_reaches_the_local_door(listen: str, url: str) -> None:
    assert mirror_url(parse_config({"local": {"listen": Setting(listen, "here")}}).local.listen) == url


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--registry", "a/b"], "--registry: host names such as docker.io, not 'a/b'"),
        (["--mirror", "host"], "--mirror: http://HOST:PORT, as containerd reaches the local door"),
        (["--containerd-version", "new"], "--containerd-version: containerd's version, such as 2.1.4, not 'new'"),
        (["--set", "local.listen=127.0.0.1:0"], "local.listen: an address with a fixed port, because contain"),
        (["--set", "hosts.registries=['a/b']"], "--set: hosts.registries: host names such as docker.io, not 'a/b'"),
        (["--set", "hosts.aply=true"], "--set: hosts.aply: unknown option; did you mean apply? there are: apply, "),
    ],
)
def test_wrong_usage_is_one_line_and_the_code_is_2(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["hosts", "apply", "--config-path", str(tmp_path), *arguments]
    assert main(command if "--containerd-version" in arguments else [*command, *OLD]) == 2
    assert capsys.readouterr().err.startswith(f"peili: {line}")


@pytest.mark.parametrize(("action", "prefix"), [("show", ""), ("apply", "not changed: "), ("remove", "not changed: ")])
def test_an_unreadable_directory_is_one_line_and_the_code_is_1(action: str, prefix: str, root: Path) -> None:
    root.chmod(0)
    # Two capabilities let root ignore the mode. The child does not inherit them.
    subject = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*subject, sys.executable, "-m", "peili.adapters.standalone", "hosts", action, "--config-path", str(root)]
    done = subprocess.run([*command, *OLD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"peili: {root}: {prefix}Permission denied\n"


def test_an_action_is_required() -> None:
    command = [sys.executable, "-m", "peili.adapters.standalone", "hosts"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error: Missing command." in done.stderr


def test_a_mirror_that_has_nothing_to_do_with_containerd_imports_neither_grpc_nor_the_doctor() -> None:
    program = (
        "import sys; from peili.adapters.standalone.cli import main; main(sys.argv[1:]);"
        "print([each for each in sys.modules if each.endswith('.doctor') or each in {'grpc', 'google.protobuf'}])"
    )
    command = [sys.executable, "-c", program, "serve", "--check", "--set=store.kind=memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "the configuration is valid\n[]\n"
    assert done.stderr == ""


@pytest.mark.parametrize("door", ["local", "peer"])
def test_a_second_serve_that_cannot_start_does_not_touch_the_files_of_the_first(
    door: str, root: Path, start: Start
) -> None:
    addresses = {each: f"127.0.0.1:{free_port()}" for each in ("local", "peer")}
    hosts = ("--set=hosts.apply=true", f'--set=hosts.config_path=["{root}"]', *LONG_TIMEOUTS)
    first = start(*hosts, *(f"--set={name}.listen={address}" for name, address in addresses.items()))
    first.wait_for("local door")
    in_force = snapshot(root)
    second = start(*hosts, f"--set=local.listen=127.0.0.1:{free_port()}", f"--set={door}.listen={addresses[door]}")
    assert second.process.wait(60) == 1
    assert second.log == f"peili: can't listen on {addresses[door]}: address already in use\n"
    assert snapshot(root) == in_force
    assert first.end() == 0
    assert snapshot(root) != in_force


def test_serve_puts_peili_first_while_it_runs(root: Path, start: Start) -> None:
    was = snapshot(root)
    port = free_port()
    serving = start(
        f"--set=local.listen=127.0.0.1:{port}",
        "--set=hosts.apply=true",
        f'--set=hosts.config_path=["{root}"]',
        "--set=hosts.registries=['docker.io']",
        *LONG_TIMEOUTS,
    )
    serving.wait_for("local door")
    written = (root / "docker.io/hosts.toml").read_text()
    assert f'[host."http://127.0.0.1:{port}"]' in written
    assert serving.end() == 0
    assert snapshot(root) == was
    assert serving.log.index(f"ContainerdHosts: changed {root}") < serving.log.index("stopping")
