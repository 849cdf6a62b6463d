"""The units in packaging/systemd: checked by systemd-analyze, and run by systemd with a real containerd."""

from __future__ import annotations

import http.client
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.lab import make_network
from tests.lab.namespaces import NamespaceNetwork
from tests.lab.network import LOCAL_PORT, PEER_PORT, Answer, Node
from tests.lab.processes import ENVIRONMENT, wait_for
from tests.packaging.systemd import UNITS, Systemd
from tests.support.directories import short_directory

from peili.mirror import PeerKeys
from peili.mirror.testing.images import Image, make_layout, pack_tar
from peili.mirror.tls.key_file import create_key_file

EXPOSURE = 20  # of 100, as rated by systemd-analyze; below 50 is "OK"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze", path=ENVIRONMENT["PATH"]) is None, reason="not installed: systemd"
)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def installed(root: Path) -> list[str]:
    """Install the units and stand-ins for the programs below `root`. Returns the names of the units."""
    shutil.copytree(UNITS, root / "usr/lib/systemd/system")
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", dirs_exist_ok=True, symlinks=True)
    for name in ("opt/peili/bin/peili", "bin/kill"):
        program = root / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return sorted(each.name for each in UNITS.iterdir())


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    units = installed(tmp_path)
    assert units == ["peili-peer.socket", "peili.service", "peili.socket"]
    done = analyze("verify", "--man=no", f"--root={tmp_path}", *units)
    ours = [line for line in done.stderr.splitlines() if "peili" in line]
    assert (done.returncode, ours) == (0, [])
    file = tmp_path / "usr/lib/systemd/system/peili.service"
    file.write_text(file.read_text().replace("RestartSec=1", "RestartSex=1"))
    assert "RestartSex" in analyze("verify", "--man=no", f"--root={tmp_path}", *units).stderr


def test_systemd_analyze_rates_the_exposure_of_the_service_as_low() -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", UNITS / "peili.service")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def node() -> Generator[Node]:
    with make_network() as network:
        if not isinstance(network, NamespaceNetwork):
            pytest.skip("a separate systemd needs root and namespaces")
        yield network.add_node("systemd")


@pytest.fixture(scope="module")
def directory() -> Generator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def image(node: Node, directory: Path) -> Generator[tuple[Image, Containerd]]:
    containerd = Containerd(node, directory / "c", unpack=False)
    containerd.start()
    image = make_layout(directory / "layout", layers=[100_000], tags=["registry.example/demo:v1"])
    containerd.import_archive(pack_tar(image.path, directory / "image.tar"))
    yield image, containerd
    containerd.stop()


@pytest.fixture(scope="module")
def systemd(node: Node, directory: Path, image: tuple[Image, Containerd]) -> Generator[Systemd]:
    (directory / "systemd").mkdir()
    store = f'[store]\nkind = "containerd"\naddress = "{image[1].socket}"\nnamespaces = ["{NAMESPACE}"]\n'
    router = '[router]\nkind = "static"\npeers = []\n'
    hosts = '[hosts]\napply = true\nconfig_path = ["/etc/containerd/certs.d:/etc/docker/certs.d"]\n'
    hosts += 'registries = ["registry.example", "_default"]\n'
    create_key_file(directory / "key")
    peer = f'[peer]\nshared_key_file = "{directory}/key"\n'
    with Systemd(node, directory / "systemd", store + router + hosts + peer) as systemd:
        yield systemd


def ask(node: Node, path: str) -> Answer:
    return node.request("GET", "127.0.0.1", LOCAL_PORT, path)


def ask_as_peer(node: Node, path: str, directory: Path) -> Answer:
    tls = PeerKeys(directory / "key", "another-host").contexts().client
    tls.check_hostname = False  # the certificate shows the name of the cluster, not the address
    return node.request("GET", "127.0.0.1", PEER_PORT, path, tls=tls)


def ready(node: Node) -> bool:
    return ask(node, "/readyz").status == 200


@pytest.fixture
def up(systemd: Systemd, node: Node) -> Systemd:
    """The running service, which has reached its containerd. Earlier starts do not count towards its limit."""
    systemd.systemctl("reset-failed")
    systemd.systemctl("start", "peili.socket", "peili-peer.socket")
    wait_for(lambda: ready(node), "peili is ready")
    wait_for(
        lambda: systemd.show("peili.service", "ActiveState") == "active", "systemd knows that the service is active"
    )
    return systemd


def test_the_first_request_starts_the_service_and_is_answered(systemd: Systemd, node: Node) -> None:
    assert systemd.show("peili.service", "ActiveState") == "inactive"
    assert ask(node, "/livez").status == 200
    wait_for(lambda: systemd.show("peili.service", "ActiveState") == "active", "the service has sent READY=1")


def test_both_doors_are_served_on_the_sockets_that_systemd_holds(up: Systemd, node: Node, directory: Path) -> None:
    assert "local door 127.0.0.1:5050, peer door [::]:5051" in up.log()
    assert ask_as_peer(node, "/v2/", directory).headers["peili-id"]
    assert ask_as_peer(node, "/readyz", directory).status == 404  # only the local door serves operations


def test_it_serves_containerd_s_content_without_any_capability(
    up: Systemd, node: Node, image: tuple[Image, Containerd]
) -> None:
    status = up.status_of_service()
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    layer = image[0].layers[0]
    answer = ask(node, f"/v2/demo/blobs/{layer.digest}?ns=registry.example")
    assert (answer.status, len(answer.body)) == (200, layer.size)


def test_it_may_write_hosts_toml_in_both_default_directories_of_containerd(up: Systemd) -> None:
    """`_default` is written into the last one, which is Docker's, and a registry into the first one."""
    assert "not changed" not in up.log(), up.log()
    ours = '[host."http://127.0.0.1:5050"]'
    for folder in ("/etc/containerd/certs.d/registry.example", "/etc/docker/certs.d/_default"):
        assert ours in up.read(f"{folder}/hosts.toml")


def test_reload_sends_a_signal_that_does_not_end_the_process(up: Systemd) -> None:
    before = up.show("peili.service", "MainPID")
    up.systemctl("reload", "peili.service")
    wait_for(lambda: "SIGHUP: reading again what plug-ins read from files" in up.log(), "the process has the signal")
    assert (up.show("peili.service", "MainPID"), up.show("peili.service", "ActiveState")) == (before, "active")


def test_a_request_during_a_restart_waits_and_is_answered(up: Systemd, node: Node) -> None:
    before = up.show("peili.service", "MainPID")
    up.systemctl("kill", "--signal=KILL", "peili.service")
    wait_for(lambda: up.show("peili.service", "MainPID") != before, "the process has ended")
    assert ask(node, "/livez").status == 200
    wait_for(lambda: up.show("peili.service", "MainPID") not in {before, "0"}, "the service was restarted")


def test_a_hung_process_is_replaced(up: Systemd, node: Node) -> None:
    before = up.show("peili.service", "MainPID")
    up.systemctl("kill", "--signal=STOP", "peili.service")
    wait_for(lambda: up.status_of_service()["State"].startswith("T"), "the process is stopped")
    assert ask(node, "/livez").status == 200
    assert up.show("peili.service", "MainPID") not in {before, "0"}


def test_the_runtime_gets_a_refused_connection_if_service_and_sockets_are_stopped(up: Systemd, node: Node) -> None:
    up.systemctl("stop", "peili.socket", "peili-peer.socket", "peili.service")
    assert up.show("peili.service", "Result") == "success"
    with pytest.raises((ConnectionRefusedError, http.client.RemoteDisconnected)):
        ask(node, "/livez")


def test_the_sockets_are_closed_if_the_service_cannot_start(up: Systemd, node: Node) -> None:
    """A runtime must not wait on a port that nobody serves."""
    up.systemctl("stop", "peili.service")
    config = up.config
    config.rename(config.with_suffix(".away"))
    try:
        wait_for(lambda: refused(node), "the socket is closed")
    finally:
        config.with_suffix(".away").rename(config)


def refused(node: Node) -> bool:
    try:
        ask(node, "/livez")
    except ConnectionRefusedError:
        return True
    except (OSError, http.client.HTTPException):
        pass
    return False
