"""`peili serve`, run as a process: start, stop, and errors of its environment."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.lab.processes import wait_for
from tests.support.certificates import make_certificate
from tests.support.directories import short_directory
from tests.support.plain_http import plain_get

from peili.mirror.testing.images import make_layout
from peili.mirror.tls.key_file import create_key_file

Start = Callable[..., "Serving"]


class Serving:
    """A `peili serve` process whose stderr goes to a file, so that it can be read at any time."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        environ: dict[str, str] | None = None,
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        self.stderr = directory / "stderr"
        command = [sys.executable, "-m", "peili.adapters.standalone", "serve", *flags]
        if descriptors is not None:
            soft, hard = descriptors
            command = ["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh", *command]
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, env={**os.environ, **(environ or {})})

    @property
    def log(self) -> str:
        return self.stderr.read_text(encoding="utf-8")

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 60
        while (found := re.search(pattern, self.log)) is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found

    @property
    def url(self) -> str:
        return "http://" + self.wait_for(r"local door (127\.0\.0\.1:\d+)")[1]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def install(directory: Path, name: str, program: str, store: str) -> None:
    """Install a plug-in like a third party does: with an entry point in an installed distribution."""
    (directory / f"{name}.py").write_text(program)
    information = directory / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[peili.stores]\n{name} = {name}:{store}\n")


FLAGS = (
    "--set=local.listen=127.0.0.1:0",
    "--set=peer.listen=127.0.0.1:0",
    "--set=store.kind=memory",
    "--set=router.kind=static",
    "--set=router.peers=[]",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Serving] = []

    def make(*flags: str, **others: Any) -> Serving:
        directory = tmp_path / f"serving-{len(started)}"
        directory.mkdir()
        started.append(Serving(directory, *FLAGS, *flags, **others))
        return started[-1]

    yield make
    for each in started:
        each.process.kill()
        each.process.wait()


def test_it_serves_what_the_store_has_and_ends_with_0_on_sigterm(start: Start, tmp_path: Path) -> None:
    image = make_layout(tmp_path / "layout", layers=[1000], tags=["registry.example/demo:v1"])
    serving = start("--set=store.kind=oci-layout", f"--set=store.path={image.path}", "--set=resolver.kind=local")
    answer = httpx.head(f"{serving.url}/v2/registry.example/demo/manifests/v1", timeout=60)
    assert answer.headers["Docker-Content-Digest"] == image.target.digest
    assert serving.end() == 0
    assert re.search(
        r"INFO    peili: peili \S+ is up: .*, store oci-layout, router static, resolver local\n", serving.log
    )
    assert "WARNING peili: the peer door refuses every other host: " in serving.log
    assert re.search(r"SIGTERM: stopping\n(.*\n)*.*peili: stopped\n$", serving.log)
    assert "ERROR" not in serving.log


def test_open_connections_and_transfers_do_not_delay_the_end(start: Start, tmp_path: Path) -> None:
    image = make_layout(tmp_path / "layout", layers=[32 << 20], tags=["registry.example/demo:v1"])
    layout = ("--set=store.kind=oci-layout", f"--set=store.path={image.path}")
    serving = start(*layout, "--set=limits.reader_timeout=600")  # the end does not wait for this time
    path = f"/v2/registry.example/demo/blobs/{image.layers[0].digest}"
    with httpx.Client(timeout=60) as idle, httpx.stream("GET", serving.url + path, timeout=60) as transfer:
        idle.get(f"{serving.url}/v2/")
        assert transfer.status_code == 200
        assert serving.end() == 0
    assert "Traceback" not in serving.log


@pytest.mark.parametrize("way", ["shared key", "certificates"])
def test_hosts_with_a_key_or_with_certificates_pull_from_each_other(way: str, start: Start, tmp_path: Path) -> None:
    image = make_layout(tmp_path / "layout", layers=[1000], tags=["registry.example/demo:v1"])
    if way == "shared key":
        create_key_file(tmp_path / "key")
        access = [f"--set=peer.shared_key_file={tmp_path}/key"]
    else:
        files = make_certificate(tmp_path / "certificates")
        access = [f"--set=peer.tls.{name}={path}" for name, path in files.files().items()]
    holder = start(*access, "--set=store.kind=oci-layout", f"--set=store.path={image.path}")
    url = "https://" + holder.wait_for(r"peer door (127\.0\.0\.1:\d+)")[1]
    patient = [f"--set=limits.{name}_timeout=30" for name in ("lookup", "connect", "first_byte")]  # on a busy machine
    puller = start(*access, f"--set=router.peers=['{url}']", *patient)
    layer = image.layers[0]
    pulled = plain_get(f"{puller.url}/v2/registry.example/demo/blobs/{layer.digest}")
    assert (pulled.status_code, len(pulled.content)) == (200, layer.size)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/v2/", verify=False, timeout=60)
    assert [each.end() for each in (puller, holder)] == [0, 0]
    assert "WARNING" not in puller.log
    assert "refuses every other host" not in holder.log


def test_an_open_peer_door_is_a_warning_at_each_start(start: Start) -> None:
    serving = start("--set=peer.insecure=true")
    serving.wait_for("WARNING peili: peer.insecure is set, so everyone who reaches the peer door can read this host's")
    assert "refuses every other host" not in serving.log


def test_sighup_reads_the_file_of_members_again(tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    peers.write_text("# nobody\n")
    router = ("--set=router.kind=file", f"--set=router.path={peers}", "--set=router.interval=3600")
    serving = Serving(tmp_path, *FLAGS[:3], *router)
    try:
        status = f"{serving.url}/status"
        wait_for(lambda: plain_get(status).json()["ready"]["router"], "the router is ready")
        assert plain_get(status).json()["peers"] == []
        peers.write_text("http://127.0.0.1:9\n")
        serving.process.send_signal(signal.SIGHUP)
        serving.wait_for("SIGHUP: reading again what plug-ins read from files")
        wait_for(lambda: plain_get(status).json()["peers"] != [], "the peer is known")
        assert serving.end() == 0
    finally:
        serving.process.kill()
        serving.process.wait()


def test_sigint_ends_it_too(start: Start) -> None:
    serving = start()
    assert plain_get(f"{serving.url}/livez").status_code == 200
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(60) == 0
    assert "SIGINT: stopping" in serving.log


def test_a_second_signal_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    image = make_layout(tmp_path / "layout", layers=[32 << 20], tags=["registry.example/demo:v1"])
    layout = f"--set=store.path={image.path}"
    serving = start("--set=store.kind=oci-layout", layout, "--set=limits.drain_timeout=60")
    path = f"/v2/registry.example/demo/blobs/{image.layers[0].digest}"
    with httpx.stream("GET", serving.url + path, timeout=60):
        serving.process.send_signal(signal.SIGTERM)
        serving.wait_for("SIGTERM: stopping")
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(60) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("hard", [100, 300])
def test_the_limit_on_open_files_is_raised_as_far_as_the_system_allows(start: Start, hard: int) -> None:
    serving = start(descriptors=(100, hard))
    assert plain_get(f"{serving.url}/livez").status_code == 200
    limits = Path(f"/proc/{serving.process.pid}/limits").read_text()
    assert re.search(rf"^Max open files +{hard} +{hard} ", limits, re.MULTILINE)
    line = f"this process may open {hard} files; the limit was 100 at the start\n"
    assert serving.log.count(line) == (hard > 100)


def test_json_logs_are_json(start: Start, tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    serving = start("--log-format=json", f"--set=peer.shared_key_file={tmp_path}/key")
    serving.wait_for("is up")
    assert serving.end() == 0
    lines = [json.loads(line) for line in serving.log.splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert all(line["logger"].startswith("peili") for line in lines)


def test_requests_and_unreachable_peers_do_not_fill_the_log(start: Start) -> None:
    serving = start()
    address, _, port = serving.url.removeprefix("http://").rpartition(":")
    for _ in range(3):
        assert plain_get(f"{serving.url}/v2/registry.example/demo/manifests/v1").status_code == 404
        with socket.create_connection((address, int(port))) as client:
            client.sendall(b"no request\r\n\r\n")
            client.recv(1000)
    lines = len(serving.log.splitlines())
    assert lines == 2, serving.log


@pytest.mark.parametrize("door", ["local", "peer"])
def test_a_port_in_use_is_one_line_and_exit_code_1(door: str, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        serving = start(f"--set={door}.listen={address}")
        assert serving.process.wait(60) == 1
    assert len(serving.log.splitlines()) == 1, serving.log
    assert serving.log.startswith("peili: ")
    assert address in serving.log
    assert "in use" in serving.log


def test_it_starts_without_containerd_and_logs_a_warning(start: Start) -> None:
    address = "/nowhere/containerd.sock"
    serving = start("--set=store.kind=containerd", f"--set=store.address={address}")
    serving.wait_for("is up")
    assert address in serving.wait_for(r"WARNING .*containerd.*")[0]
    assert plain_get(f"{serving.url}/livez").status_code == 200
    assert plain_get(f"{serving.url}/readyz").status_code == 503
    assert serving.end() == 0
    assert "Traceback" not in serving.log


def test_systemd_receives_the_states_ready_alive_and_stopping(start: Start) -> None:
    with short_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(directory / "notify"))
        systemd.settimeout(30)
        environ = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "3000000"}
        serving = start("--set=watchdog.timeout=0", environ=environ)
        received = set(systemd.recv(100).split())
        while received < {b"READY=1", b"WATCHDOG=1"}:
            received.update(systemd.recv(100).split())
        assert plain_get(f"{serving.url}/livez").status_code == 200
        assert serving.end() == 0
        while b"STOPPING=1" not in received:
            received.update(systemd.recv(100).split())
    assert received == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


SLOW = """
import asyncio, os
from contextlib import asynccontextmanager
from peili.stores.memory import MemoryStore

class SlowStore(MemoryStore):
    @asynccontextmanager
    async def run(self, context):
        yield
        context.log.warning("is stopping")
        while not os.path.exists(os.environ["STOP_FILE"]):
            await asyncio.sleep(0.01)
"""


def test_the_port_is_closed_while_plug_ins_stop(start: Start, tmp_path: Path) -> None:
    install(tmp_path, "slow", SLOW, "SlowStore")
    stop_file = tmp_path / "stop"
    environ = {"PYTHONPATH": str(tmp_path), "STOP_FILE": str(stop_file)}
    serving = start("--set=store.kind=slow", "--set=limits.stop_timeout=60", environ=environ)
    url = serving.url
    serving.process.send_signal(signal.SIGTERM)
    serving.wait_for("is stopping")
    with pytest.raises(httpx.ConnectError):
        plain_get(f"{url}/v2/", timeout=5)
    stop_file.touch()
    assert serving.process.wait(60) == 0


STUCK = """
import time
from peili.stores.memory import MemoryStore

class StuckStore(MemoryStore):
    async def describe(self, digest):
        time.sleep(600)
"""


def test_a_plug_in_that_blocks_the_loop_ends_the_process_which_logs_where_it_was_blocked(
    start: Start, tmp_path: Path
) -> None:
    install(tmp_path, "stuck", STUCK, "StuckStore")
    flags = ("--set=store.kind=stuck", "--set=watchdog.timeout=0.5")
    serving = start(*flags, environ={"PYTHONPATH": str(tmp_path)})
    blob = f"{serving.url}/v2/registry.example/demo/blobs/sha256:{'0' * 64}"
    with pytest.raises(httpx.TransportError):
        plain_get(blob, timeout=60)
    assert serving.process.wait(60) == -signal.SIGABRT
    assert "the event loop has not moved for 0.5 seconds" in serving.log
    assert "stuck.py" in serving.log
