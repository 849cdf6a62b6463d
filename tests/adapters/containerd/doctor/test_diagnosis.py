"""`peili doctor` beside a real containerd and a real peili: when all is well, and when one thing is not."""

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

from peili.adapters.standalone.cli import main
from peili.mirror.testing.images import Image, make_layout, pack_tar

pytestmark = pytest.mark.skipif(
    any(shutil.which(each, path=ENVIRONMENT["PATH"]) is None for each in ("containerd", "ctr", "setpriv")),
    reason="not installed: containerd",
)
REGISTRY = "registry.example"
CRI = 'plugins."io.containerd.grpc.v1.cri"'


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class House:
    """A host with containerd, its peili, and a neighbour."""

    containerd: Containerd
    peili: PeiliProcess
    neighbour: PeiliProcess
    image: Image
    directory: Path

    def arguments(self, *arguments: str | Path) -> list[str]:
        """Of `peili`, with the configuration of the one that runs."""
        return [*map(str, arguments), "--config", str(self.peili.configuration)]

    def command(self, *arguments: str | Path) -> Done:
        """`peili` in this process: starting one takes longer than all that it does."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(self.arguments(*arguments))
        return Done(code, out.getvalue(), err.getvalue())

    def apply(self) -> None:
        done = self.command("hosts", "apply", "--config-path", self.containerd.hosts)
        assert done.returncode == 0, done.stderr

    def asked(self) -> int:
        """How often containerd has asked this host's peili."""
        told = json.loads(self.peili.request("GET", "/status").body)
        return int(told["runtime"].get("containerd", {}).get("requests", 0))

    def doctor(self, *flags: str | Path) -> Diagnosis:
        done = self.command("doctor", "--json", *flags)
        assert done.stderr == ""
        told = json.loads(done.stdout)
        assert told["healthy"] is (done.returncode == 0)
        return Diagnosis(done.returncode, told["findings"])


@dataclass(frozen=True)
class Diagnosis:
    """The exit code, and what was found."""

    code: int
    findings: Sequence[dict[str, Any]]

    def of(self, level: str) -> dict[str, str]:
        """What was found of one level, by what it is about."""
        return {each["about"]: each["what"] for each in self.findings if each["level"] == level}

    def mend(self, about: str) -> str:
        return str(next(each["fix"] for each in self.findings if each["about"] == about and each["fix"]))


@pytest.fixture(scope="module")
def house() -> Generator[House]:
    with short_directory() as directory:
        yield from _house(directory)


def _house(directory: Path) -> Generator[House]:
    network = LoopbackNetwork()
    node = network.add_node("here")
    hosts = directory / "c/hosts"
    settings = f'[{CRI}.registry]\nconfig_path = "{hosts}"\n'
    # These tests state what 1.x does; test_doctor_matrix.py has the other versions.
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
        yield House(containerd, peili, neighbour, image, directory)
    finally:
        peili.stop()
        neighbour.stop()
        containerd.stop()


@pytest.fixture
def applied(house: House) -> House:
    """The same, with peili in hosts.toml."""
    shutil.rmtree(house.containerd.hosts)
    house.containerd.hosts.mkdir()
    house.apply()
    return house


def test_where_all_is_well_it_proves_the_way_with_an_image_that_is_here(applied: House) -> None:
    diagnosis = applied.doctor()
    assert (diagnosis.code, diagnosis.of("fail")) == (0, {})
    fine = diagnosis.of("ok")
    mirror = f"http://{applied.peili.local}"
    assert fine["request"] == (f"{mirror} answers correctly for {REGISTRY}/demo:v1 ({applied.image.target.digest})")
    assert fine["local door"] == f"peili here answers at {mirror}"
    assert fine["peer door"] == f"this peili answers at http://{applied.peili.peer}"
    assert fine["hosts.toml"] == f"containerd uses {mirror} for every other registry"
    assert fine["configuration"] == str(applied.containerd.configuration)  # as the running one was started
    assert fine["config_path"] == str(applied.containerd.hosts)
    assert fine["containerd"].endswith(f"answers on {applied.containerd.socket}")
    assert fine["content"].endswith("io.containerd.content.v1.content")
    assert "1 known, all answer" in fine["peers"] or "2 known, all answer" in fine["peers"]
    assert set(diagnosis.of("warn")) <= {"asked", "CRI plug-in"}  # the laboratory's containerd has no pods


def test_in_text_each_finding_is_a_line_and_each_that_is_not_well_says_how_to_mend_it(applied: House) -> None:
    diagnosis = applied.doctor()
    command = [sys.executable, "-m", "peili.adapters.standalone", *applied.arguments("doctor")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    expected = [f"{each['level']:4}  {each['about']}: {each['what']}" for each in diagnosis.findings]
    assert [line for line in lines[:-1] if not line.startswith("      fix: ")] == expected
    warnings = len([each for each in diagnosis.findings if each["level"] == "warn"])
    assert lines[-1].startswith(f"nothing failed; {warnings} warning"), "the laboratory's containerd has no pods"
    for each in diagnosis.findings:
        assert (each["level"] == "ok") is (each["fix"] == "")


def test_it_knows_whether_containerd_has_ever_asked(applied: House) -> None:
    """The request of the doctor's own does not count."""
    if "asked" in applied.doctor().of("warn"):
        assert "containerd has sent no request since peili started" in applied.doctor().of("warn")["asked"]
    with pytest.raises(CommandFailed):  # nobody has it, and upstream does not exist
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.doctor().of("ok")["asked"].startswith("containerd has sent ")


def test_without_hosts_toml_it_names_the_command_that_mends_it(house: House) -> None:
    shutil.rmtree(house.containerd.hosts)
    house.containerd.hosts.mkdir()
    before = house.doctor()
    assert before.code == 1
    assert before.of("fail") == {"hosts.toml": f"none in {house.containerd.hosts} leads to http://{house.peili.local}"}
    assert "only" in before.of("ok")["request"]  # no registry leads here, so only /v2/ was asked
    program, *command = before.mend("hosts.toml").removeprefix("run: ").split()
    assert program == "peili"
    assert house.command(*command).returncode == 0
    assert house.doctor().code == 0


def test_a_registry_that_leads_elsewhere_and_a_mirror_that_is_not_first_are_named(applied: House) -> None:
    mirror = f"http://{applied.peili.local}"
    for registry, first in (("other.example", "http://10.0.0.9"), (REGISTRY, "http://10.0.0.9")):
        directory = applied.containerd.hosts / registry
        directory.mkdir()
        second = f'[host."{mirror}"]\n' if registry == REGISTRY else ""
        (directory / "hosts.toml").write_text(f'[host."{first}"]\n{second}')
    found = [each["what"] for each in applied.doctor().findings if each["about"] == "hosts.toml"]
    assert f"{applied.containerd.hosts / REGISTRY}: {mirror} is not the first host" in found
    assert f"{applied.containerd.hosts / 'other.example'} does not lead to {mirror}" in found
    chosen = applied.doctor(f'--set=mirror.registries=["{REGISTRY}"]')  # others are none of its business
    assert not any("other.example" in each["what"] for each in chosen.findings)


def test_an_ipv6_door_keeps_containerd_1_x_from_reading_the_whole_file(applied: House) -> None:
    """It asks nobody of the file's, also not those that it could read."""
    directory = applied.containerd.hosts / REGISTRY
    directory.mkdir()
    second = f'[host."http://{applied.peili.local}"]\ncapabilities = ["pull"]\n'
    (directory / "hosts.toml").write_text(f'[host."http://[::1]:5050"]\ncapabilities = ["pull"]\n{second}')
    diagnosis = applied.doctor("--set=local.listen=[::1]:5050")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["hosts.toml"].startswith("containerd 1.x cannot read '[host.\"http://[::1]:5050\"]'")
    assert "local.listen" in diagnosis.mend("hosts.toml")
    asked = applied.asked()
    with pytest.raises(CommandFailed):
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.asked() == asked
    (directory / "hosts.toml").write_text(second)
    with pytest.raises(CommandFailed):
        applied.containerd.pull(f"{REGISTRY}/nothing@sha256:{'0' * 64}")
    assert applied.asked() > asked


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
def test_a_configuration_that_keeps_containerd_from_asking(
    text: str, about: str, what: str, applied: House, tmp_path: Path
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


def test_hosts_toml_in_a_folder_where_containerd_does_not_look(applied: House, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "containerd.toml"
    file.write_text(f'version = 2\n[{CRI}.registry]\nconfig_path = "{tmp_path}/elsewhere"\n')
    folder = applied.containerd.hosts
    diagnosis = applied.doctor("--containerd-config", file, f'--set=hosts.config_path=["{folder}"]')
    assert diagnosis.of("fail")["hosts.toml"] == (
        f"none in {tmp_path}/elsewhere leads to http://{applied.peili.local}; there is one in {folder}, "
        "where containerd does not look"
    )
    assert diagnosis.mend("hosts.toml") == f"run: peili hosts apply --config-path {tmp_path}/elsewhere"


def test_a_socket_that_is_not_there_and_one_that_is_none(applied: House) -> None:
    gone = applied.directory / "gone.sock"
    diagnosis = applied.doctor(f"--set=store.address={gone}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["containerd"].startswith(f"there is no socket {gone}")
    gone.touch()
    assert f"{gone} is not a socket" in applied.doctor(f"--set=store.address={gone}").of("fail")["containerd"]


@contextmanager
def without_rights(directory: Path) -> Generator[None]:
    """This process can't enter `directory`; root does so as another user, since nothing is closed to root."""
    mode, user = directory.stat().st_mode, os.geteuid()
    directory.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(mode)


def test_a_socket_that_this_user_may_not_reach(applied: House) -> None:
    """peili's own configuration is in the same directory, so that it is not given here."""
    out = io.StringIO()
    with without_rights(applied.directory), redirect_stdout(out):
        flags = [f"--set=store.address={applied.containerd.socket}", f"--set=local.listen={applied.peili.local}"]
        code = main(["doctor", "--json", *flags, "--containerd-config", str(applied.containerd.configuration)])
    failed = Diagnosis(code, json.loads(out.getvalue())["findings"]).of("fail")
    assert code == 1
    assert failed["containerd"].startswith(f"no permission to reach {applied.containerd.socket}; run as root")
    assert failed["configuration"] == f"{applied.containerd.configuration} cannot be read: permission denied"


def test_a_containerd_that_hangs(applied: House) -> None:
    applied.containerd.process.freeze()
    try:
        diagnosis = applied.doctor()
    finally:
        applied.containerd.process.resume()
    assert diagnosis.code == 1
    assert re.search("does not answer|did not answer in time", diagnosis.of("fail")["containerd"])
    assert diagnosis.of("ok")["configuration"] == str(applied.containerd.configuration)  # the rest is told all the same


def test_a_content_directory_that_containerd_has_yet_to_make(applied: House) -> None:
    root = applied.containerd.blob_path("sha256:0").parents[2]
    away = root.rename(root.with_name("away"))
    try:
        assert "no such file" in applied.doctor().of("warn")["content"]  # there is content, so it is elsewhere
        applied.containerd.ctr("content", "rm", *applied.containerd.digests())
        assert "does not exist yet" in applied.doctor().of("ok")["content"]
    finally:
        away.rename(root)
        applied.containerd.import_archive(applied.directory / "image.tar")


def test_a_content_directory_that_cannot_be_read(applied: House, tmp_path: Path) -> None:
    diagnosis = applied.doctor(f"--set=store.content_path={tmp_path}/gone")
    assert "no such file or directory, so peili reads it through containerd's API" in diagnosis.of("warn")["content"]
    assert diagnosis.code == 0  # slower, but used


def test_a_local_door_where_nobody_is_and_one_that_is_somebody_else_s(applied: House) -> None:
    address = f"127.0.0.1:{free_port()}"
    diagnosis = applied.doctor(f"--set=local.listen={address}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["local door"].startswith(f"nothing answers at http://{address} (")
    diagnosis = applied.doctor(f"--set=local.listen={applied.peili.peer}")  # a peer door tells nobody who asks it
    assert "is not peili (status 404 for /status)" in diagnosis.of("fail")["local door"]


def test_a_peili_that_serves_another_store_fails_the_request(applied: House) -> None:
    """The neighbour is a peili, too, but not this containerd's."""
    mirror = f"http://{applied.neighbour.local}"
    done = applied.command("hosts", "apply", "--config-path", applied.containerd.hosts, "--mirror", mirror)
    assert done.returncode == 0, done.stderr
    diagnosis = applied.doctor(f"--set=local.listen={applied.neighbour.local}")
    assert diagnosis.code == 1
    assert diagnosis.of("fail")["request"].startswith(f"{REGISTRY}/demo:v1 is in containerd, but {mirror} answers 404")


def test_a_closed_peer_door_and_peers_that_are_gone(applied: House) -> None:
    diagnosis = applied.doctor("--set=peer.insecure=false")
    assert diagnosis.of("fail") == {"peer door": "it refuses every other host"}
    assert diagnosis.mend("peer door") == "set peer.insecure = true, and let only the peers reach the port"
    applied.neighbour.process.freeze()
    try:
        what = wait_for(lambda: applied.doctor().of("warn").get("peers"), "the neighbour is missed")
    finally:
        applied.neighbour.process.resume()
    assert what is not None
    assert "do not answer" in what or "none is known" in what


def test_a_containerd_that_has_no_image_is_asked_for_the_api(applied: House) -> None:
    diagnosis = applied.doctor('--set=mirror.registries=["docker.io"]')
    assert diagnosis.of("ok")["request"] == (
        f"containerd has no image that this mirror is for, so the doctor requested only "
        f"http://{applied.peili.local}/v2/, which answers"
    )


def test_a_wrong_configuration_of_peili_is_exit_code_2(applied: House) -> None:
    done = applied.command("doctor", "--set=store.namespaces=3")
    assert done.returncode == 2
    assert done.stderr.startswith("peili: --set: store.namespaces: ")
