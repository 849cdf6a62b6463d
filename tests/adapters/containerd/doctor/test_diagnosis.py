"""`peili doctor` with a real containerd and a real peili: when all is well, and with one problem at a time."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.containerd_releases import INSTALLED
from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.network import LoopbackNetwork
from tests.lab.peili_process import PeiliProcess
from tests.lab.processes import ENVIRONMENT, CommandFailed, wait_for
from tests.lab.releases import release
from tests.support.directories import short_directory
from tests.support.ports import free_port
from tests.support.user_namespaces import with_limit

from peili.adapters.standalone.cli import main
from peili.mirror.testing.images import Image, make_layout, pack_tar
from peili.stores.containerd.inotify_limits import InotifyLimit

pytestmark = pytest.mark.skipif(
    any(shutil.which(each, path=ENVIRONMENT["PATH"]) is None for each in ("containerd", "ctr", "setpriv")),
    reason="not installed: containerd",
)
REGISTRY = "registry.example"
CRI = 'plugins."io.containerd.grpc.v1.cri"'


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Setup:
    """A host with containerd, its peili, and a neighbour."""

    containerd: Containerd
    peili: PeiliProcess
    neighbour: PeiliProcess
    image: Image
    directory: Path

    def arguments(self, *arguments: str | Path) -> list[str]:
        """Return arguments for `peili`, with the configuration of the running one."""
        return [*map(str, arguments), "--config", str(self.peili.configuration)]

    def command(self, *arguments: str | Path) -> CommandResult:
        """Run `peili` in this process, because starting a process takes longer than the command itself."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(self.arguments(*arguments))
        return CommandResult(code, out.getvalue(), err.getvalue())

    def apply(self) -> None:
        done = self.command("hosts", "apply", "--config-path", self.containerd.hosts)
        assert done.returncode == 0, done.stderr

    def request_count(self) -> int:
        """Return how many requests containerd has sent to this host's peili."""
        report = json.loads(self.peili.request("GET", "/status").body)
        return int(report["runtime"].get("containerd", {}).get("requests", 0))

    def doctor(self, *flags: str | Path) -> Diagnosis:
        done = self.command("doctor", "--json", *flags)
        assert done.stderr == ""
        report = json.loads(done.stdout)
        assert report["healthy"] is (done.returncode == 0)
        return Diagnosis(done.returncode, report["findings"])


@dataclass(frozen=True)
class Diagnosis:
    """The exit code, and the results."""

    code: int
    findings: Sequence[dict[str, Any]]

    def of(self, level: str) -> dict[str, str]:
        """Return what was found with one level, by what was checked."""
        return {each["about"]: each["what"] for each in self.findings if each["level"] == level}

    def fix(self, about: str) -> str:
        return str(next(each["fix"] for each in self.findings if each["about"] == about and each["fix"]))


@pytest.fixture(scope="module")
def setup() -> Generator[Setup]:
    with short_directory() as directory:
        yield from _set_up(directory)


def _set_up(directory: Path) -> Generator[Setup]:
    network = LoopbackNetwork()
    node = network.add_node("here")
    hosts = directory / "c/hosts"
    settings = f'[{CRI}.registry]\nconfig_path = "{hosts}"\n'
    # These tests are about 1.x; test_matrix.py has the other versions.
    containerd = Containerd(node, directory / "c", unpack=False, settings=settings, release=release(INSTALLED))
    peili = PeiliProcess(node, "here", directory / "peili")
    neighbour = PeiliProcess(network.add_node("there"), "there", directory / "neighbour")
    hosts.mkdir()
    image = make_layout(directory / "image", layers=[1000], tags=[f"{REGISTRY}/demo:v1"])
    try:
        containerd.start()
        containerd.import_archive(pack_tar(image.path, directory / "image.tar"))
        store = {"kind": "containerd", "address": str(containerd.socket), "namespaces": [NAMESPACE]}
        neighbour.start({"store": {"kind": "memory"}, "router": {"kind": "static", "peers": []}})
        peers = [f"http://{neighbour.peer}", f"http://{peili.peer}"]
        peili.start({"store": store, "router": {"kind": "static", "peers": peers}})
        setup = Setup(containerd, peili, neighbour, image, directory)
        wait_for(lambda: "peers" not in setup.doctor().of("warn"), "peili knows the neighbour")
        yield setup
    finally:
        peili.stop()
        neighbour.stop()
        containerd.stop()


@pytest.fixture
def applied(setup: Setup) -> Setup:
    """The same setup with peili in hosts.toml."""
    shutil.rmtree(setup.containerd.hosts)
    setup.containerd.hosts.mkdir()
    setup.apply()
    return setup


def test_if_all_is_well_it_requests_an_image_that_containerd_has(applied: Setup) -> None:
    diagnosis = applied.doctor()
    assert (diagnosis.code, diagnosis.of("fail")) == (0, {})
    fine = diagnosis.of("ok")
    mirror = f"http://{applied.peili.local}"
    assert fine["request"] == (f"{mirror} answers correctly for {REGISTRY}/demo:v1 ({applied.image.target.digest})")
    assert fine["local door"] == f"peili here answers at {mirror}"
    assert fine["peer door"] == f"this peili answers at http://{applied.peili.peer}"
    assert fine["hosts.toml"] == f"containerd uses {mirror} for every other registry"
    assert fine["configuration"] == str(applied.containerd.configuration)  # the file that containerd was started with
    assert fine["config_path"] == str(applied.containerd.hosts)
    assert fine["containerd"].endswith(f"answers on {applied.containerd.socket}")
    assert fine["content"].endswith("io.containerd.content.v1.content")
    assert "1 known, all answer" in fine["peers"] or "2 known, all answer" in fine["peers"]
    # The lab's containerd does not run pods. What else runs on this machine may use all of inotify.
    assert set(diagnosis.of("warn")) <= {"asked", "CRI plug-in", "inotify"}


def test_text_has_a_line_for_each_result_and_a_fix_for_each_problem(applied: Setup) -> None:
    diagnosis = applied.doctor()
    command = [sys.executable, "-m", "peili.adapters.standalone", *applied.arguments("doctor")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    expected = [f"{each['level']:4}  {each['about']}: {each['what']}" for each in diagnosis.findings]
    assert [line for line in lines[:-1] if not line.startswith("      fix: ")] == expected
    warnings = len([each for each in diagnosis.findings if each["level"] == "warn"])
    assert lines[-1].startswith(f"nothing failed; {warnings} warning"), "the lab's containerd does not run pods"
    for each in diagnosis.findings:
        assert (each["level"] == "ok") is (each["fix"] == "")


def test_it_knows_whether_containerd_has_sent_requests(applied: Setup) -> None:
    """The doctor's own requests do not count."""
    if "asked" in applied.doctor().of("warn"):
        assert "containerd has sent no request since peili started" in applied.doctor().of("warn")["asked"]
    with pytest.raises(CommandFailed):  # no host has it, and upstream does not exist
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.doctor().of("ok")["asked"].startswith("containerd has sent ")


def test_without_hosts_toml_it_names_the_command_that_fixes_it(setup: Setup) -> None:
    shutil.rmtree(setup.containerd.hosts)
    setup.containerd.hosts.mkdir()
    before = setup.doctor()
    assert before.code == 1
    assert before.of("fail") == {"hosts.toml": f"none in {setup.containerd.hosts} leads to http://{setup.peili.local}"}
    assert "only" in before.of("ok")["request"]  # no registry leads to peili, so the doctor requested only /v2/
    program, *command = before.fix("hosts.toml").removeprefix("run: ").split()
    assert program == "peili"
    assert setup.command(*command).returncode == 0
    assert setup.doctor().code == 0


def test_it_names_registries_without_the_mirror_and_those_where_it_is_not_first(applied: Setup) -> None:
    mirror = f"http://{applied.peili.local}"
    for registry, first in (("other.example", "http://10.0.0.9"), (REGISTRY, "http://10.0.0.9")):
        directory = applied.containerd.hosts / registry
        directory.mkdir()
        second = f'[host."{mirror}"]\n' if registry == REGISTRY else ""
        (directory / "hosts.toml").write_text(f'[host."{first}"]\n{second}')
    found = [each["what"] for each in applied.doctor().findings if each["about"] == "hosts.toml"]
    assert f"{applied.containerd.hosts / REGISTRY}: {mirror} is not the first host" in found
    assert f"{applied.containerd.hosts / 'other.example'} does not lead to {mirror}" in found
    chosen = applied.doctor(f'--set=mirror.registries=["{REGISTRY}"]')  # the mirror is not for other registries
    assert not any("other.example" in each["what"] for each in chosen.findings)


def test_with_an_ipv6_door_containerd_1_x_ignores_the_whole_file(applied: Setup) -> None:
    """It uses no host of the file, not even those that it could read."""
    directory = applied.containerd.hosts / REGISTRY
    directory.mkdir()
    second = f'[host."http://{applied.peili.local}"]\ncapabilities = ["pull"]\n'
    (directory / "hosts.toml").write_text(f'[host."http://[::1]:5050"]\ncapabilities = ["pull"]\n{second}')
    diagnosis = applied.doctor("--set=local.listen=[::1]:5050")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["hosts.toml"].startswith("containerd 1.x cannot read '[host.\"http://[::1]:5050\"]'")
    assert "local.listen" in diagnosis.fix("hosts.toml")
    requests = applied.request_count()
    with pytest.raises(CommandFailed):
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.request_count() == requests
    (directory / "hosts.toml").write_text(second)
    with pytest.raises(CommandFailed):
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.request_count() > requests


@pytest.mark.parametrize(
    ("text", "about", "what"),
    [
        ("version = 2\n", "config_path", "not set, so containerd reads no hosts.toml and uses no mirror"),
        (
            f'version = 2\n[{CRI}.registry]\nconfig_path = "/nowhere/certs.d"\n',
            "config_path",
            "the directory /nowhere/certs.d does not exist",
        ),
        (
            f'version = 2\n[{CRI}.registry]\nconfig_path = "DIR"\n[{CRI}.containerd]\ndiscard_unpacked_layers = true\n',
            "discard_unpacked_layers",
            "true: containerd drops layers after it unpacked them, so there is nothing to share",
        ),
        (
            f'version = 2\n[{CRI}.registry]\nconfig_path = "DIR"\n[{CRI}.registry.mirrors."a.b"]\nendpoint = ["http://c"]',
            "mirrors",
            "registry.mirrors set: containerd accepts either these or config_path",
        ),
        (
            'version = 2\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "DIR"\n',
            "config_path",
            "which this containerd ignores",
        ),
        ("version = 2\n[plugins", "configuration", "is not TOML"),
    ],
)
def test_a_configuration_that_keeps_containerd_from_using_the_mirror(
    text: str, about: str, what: str, applied: Setup, tmp_path: Path
) -> None:
    file = tmp_path / "containerd.toml"
    file.write_text(text.replace("DIR", str(applied.containerd.hosts)))
    diagnosis = applied.doctor("--containerd-config", file)
    assert diagnosis.code == 1
    failed = [each["what"] for each in diagnosis.findings if (each["level"], each["about"]) == ("fail", about)]
    assert any(what in each for each in failed), diagnosis.findings
    assert diagnosis.of("warn")["configuration"] == (
        f"containerd was started with {applied.containerd.configuration}, not with {file}"
    )


def test_hosts_toml_in_a_directory_that_containerd_does_not_use(applied: Setup, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "containerd.toml"
    file.write_text(f'version = 2\n[{CRI}.registry]\nconfig_path = "{tmp_path}/elsewhere"\n')
    folder = applied.containerd.hosts
    diagnosis = applied.doctor("--containerd-config", file, f'--set=hosts.config_path=["{folder}"]')
    assert diagnosis.of("fail")["hosts.toml"] == (
        f"none in {tmp_path}/elsewhere leads to http://{applied.peili.local}; there is one in {folder}, "
        "where containerd does not look"
    )
    assert diagnosis.fix("hosts.toml") == f"run: peili hosts apply --config-path {tmp_path}/elsewhere"


def test_a_missing_socket_and_a_file_that_is_not_a_socket(applied: Setup) -> None:
    gone = applied.directory / "gone.sock"
    diagnosis = applied.doctor(f"--set=store.address={gone}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["containerd"].startswith(f"there is no socket {gone}")
    gone.touch()
    assert f"{gone} is not a socket" in applied.doctor(f"--set=store.address={gone}").of("fail")["containerd"]


@contextmanager
def without_rights(directory: Path) -> Generator[None]:
    """Take away the permission to enter `directory`. Root becomes another user, because root may enter any."""
    mode, user = directory.stat().st_mode, os.geteuid()
    directory.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(mode)


def test_a_socket_that_this_user_has_no_permission_to_reach(applied: Setup) -> None:
    """peili's own configuration is in the same directory, so this test does not use it."""
    out = io.StringIO()
    with without_rights(applied.directory), redirect_stdout(out):
        flags = [f"--set=store.address={applied.containerd.socket}", f"--set=local.listen={applied.peili.local}"]
        code = main(["doctor", "--json", *flags, "--containerd-config", str(applied.containerd.configuration)])
    failed = Diagnosis(code, json.loads(out.getvalue())["findings"]).of("fail")
    assert code == 1
    assert failed["containerd"].startswith(f"no permission to reach {applied.containerd.socket}; run as root")
    assert failed["configuration"] == f"{applied.containerd.configuration} cannot be read: permission denied"


def test_a_containerd_that_hangs(applied: Setup) -> None:
    applied.containerd.process.freeze()
    try:
        diagnosis = applied.doctor()
    finally:
        applied.containerd.process.resume()
    assert diagnosis.code == 1
    assert re.search("does not answer|did not answer in time", diagnosis.of("fail")["containerd"])
    assert diagnosis.of("ok")["configuration"] == str(applied.containerd.configuration)  # the other checks run


def test_a_content_directory_that_containerd_has_not_created_yet(applied: Setup) -> None:
    root = applied.containerd.blob_path("sha256:0").parents[2]
    away = root.rename(root.with_name("away"))
    try:
        assert "no such file" in applied.doctor().of("warn")["content"]  # there is content, so it must be elsewhere
        applied.containerd.ctr("content", "rm", *applied.containerd.digests())
        assert "does not exist yet" in applied.doctor().of("ok")["content"]
        (root / "ingest").mkdir(parents=True)  # containerd 1.6 begins with this
        assert f"{root}/blobs does not exist yet" in applied.doctor().of("ok")["content"]
        (root / "ingest").rmdir()
        root.rmdir()
    finally:
        away.rename(root)
        applied.containerd.import_archive(applied.directory / "image.tar")


@pytest.mark.parametrize(("name", "limit"), [("instances", InotifyLimit.INSTANCES), ("watches", InotifyLimit.WATCHES)])
def test_a_limit_of_inotify_that_leaves_nothing(applied: Setup, name: str, limit: InotifyLimit) -> None:
    command = [sys.executable, "-m", "peili.adapters.standalone", *applied.arguments("doctor", "--json")]
    done = subprocess.run(
        with_limit(f"max_inotify_{name}", 0, command), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    diagnosis = Diagnosis(done.returncode, json.loads(done.stdout)["findings"])
    assert (diagnosis.of("warn")["inotify"], diagnosis.fix("inotify")) == (limit.cost, limit.fix)


def test_a_content_directory_that_cannot_be_read(applied: Setup, tmp_path: Path) -> None:
    diagnosis = applied.doctor(f"--set=store.content_path={tmp_path}/gone")
    assert "no such file or directory, so peili reads it through containerd's API" in diagnosis.of("warn")["content"]
    assert diagnosis.code == 0  # peili works, but more slowly


def test_a_local_door_where_nothing_listens_and_one_of_another_program(applied: Setup) -> None:
    address = f"127.0.0.1:{free_port()}"
    diagnosis = applied.doctor(f"--set=local.listen={address}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["local door"].startswith(f"nothing answers at http://{address} (")
    # A peer door has no /status.
    diagnosis = applied.doctor(f"--set=local.listen={applied.peili.peer}", "--set=peer.listen=[]")
    assert "is not peili (status 404 for /status)" in diagnosis.of("fail")["local door"]


def test_a_peili_that_serves_another_store_fails_the_request(applied: Setup) -> None:
    """The neighbour is a peili, too, but it does not serve this containerd."""
    mirror = f"http://{applied.neighbour.local}"
    done = applied.command("hosts", "apply", "--config-path", applied.containerd.hosts, "--mirror", mirror)
    assert done.returncode == 0, done.stderr
    diagnosis = applied.doctor(f"--set=local.listen={applied.neighbour.local}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["request"].startswith(f"{REGISTRY}/demo:v1 is in containerd, but {mirror} answers 404")


def test_a_closed_peer_door_and_peers_that_do_not_answer(applied: Setup) -> None:
    diagnosis = applied.doctor("--set=peer.insecure=false")
    assert diagnosis.of("fail") == {"peer door": "it refuses every other host"}
    assert (
        diagnosis.fix("peer door")
        == "make a key with peili keys new, copy it to every host, and set peer.shared_key_file"
    )
    applied.neighbour.process.freeze()
    try:
        what = wait_for(lambda: applied.doctor().of("warn").get("peers"), "the doctor misses the neighbour")
    finally:
        applied.neighbour.process.resume()
    assert what is not None
    assert "does not answer" in what or "none is known" in what


def test_a_peer_that_peili_knows_to_be_dead_is_named_with_the_reason(applied: Setup) -> None:
    key = f"/v2/demo/blobs/sha256:{'7' * 64}?ns={REGISTRY}"  # nobody has it, so peili asks the neighbour
    seen = f"{applied.neighbour.identity} is known, but does not answer, and was last seen"

    def find() -> str | None:
        applied.peili.request("GET", key)
        what = applied.doctor().of("warn").get("peers", "")
        return what if what.startswith(seen) else None

    wait_for(lambda: "peers" not in applied.doctor().of("warn"), "peili knows the neighbour")
    applied.peili.request("GET", key)
    applied.neighbour.process.freeze()
    try:
        what = wait_for(find, "peili and the doctor miss the neighbour")
    finally:
        applied.neighbour.process.resume()
    assert re.search(r" was last seen \d+ seconds ago: .*no answer within", what or ""), what
    wait_for(lambda: "peers" not in applied.doctor().of("warn"), "the neighbour answers again")


def test_without_a_suitable_image_it_requests_only_the_api_root(applied: Setup) -> None:
    diagnosis = applied.doctor('--set=mirror.registries=["docker.io"]')
    assert diagnosis.of("ok")["request"] == (
        f"containerd has no image that this mirror is for, so the doctor requested only "
        f"http://{applied.peili.local}/v2/, which answers"
    )


def test_a_wrong_configuration_of_peili_is_exit_code_2(applied: Setup) -> None:
    done = applied.command("doctor", "--set=store.namespaces=3")
    assert done.returncode == 2
    assert done.stderr.startswith("peili: --set: store.namespaces: ")
