"""systemd's protocols: `peili serve` on sockets that another process opened (sd_listen_fds(3)), and sd_notify(3)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from tests.lab.processes import ENVIRONMENT, Process, wait_for
from tests.support.directories import short_directory
from tests.support.plain_http import plain_get
from tests.support.ports import free_ports

from peili.adapters.standalone.systemd import Notifier, passed_sockets
from peili.mirror import ConfigError

COMMAND = [
    *(sys.executable, "-m", "peili.adapters.standalone", "serve", "--set=store.kind=memory"),
    *("--set=router.kind=static", "--set=router.peers=[]", "--set=local.listen=127.0.0.1:0"),
    "--set=peer.listen=[]",
]
# This does what systemd does between fork and exec: the sockets become 3, 4, …, and LISTEN_PID is set.
LONG_TIMEOUTS = ("--set=limits.start_timeout=60", "--set=limits.stop_timeout=60")  # other tests keep the disk busy
LAUNCHER = """\
import fcntl, os, sys
numbers, names, *command = sys.argv[1:]
given = [int(each) for each in numbers.split()]
numbers = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 100) for each in given]
for each in given:
    os.close(each)
for index, each in enumerate(numbers):
    os.dup2(each, 3 + index)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


@contextmanager
def launched(
    directory: Path, descriptors: Sequence[int], names: str, command: Sequence[str] = COMMAND
) -> Generator[Process]:
    """Run `command` with `descriptors` as its descriptors 3, 4, …"""
    numbers = " ".join(str(each) for each in descriptors)
    process = Process([sys.executable, "-c", LAUNCHER, numbers, names, *command], directory / "log", keep=descriptors)
    try:
        yield process
    finally:
        process.kill()


def listener(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def test_each_door_is_served_on_the_sockets_of_its_name(tmp_path: Path) -> None:
    with closing(listener()) as peer, closing(listener()) as local, closing(listener("::1")) as local6:
        sockets = [each.fileno() for each in (peer, local, local6)]
        with launched(tmp_path, sockets, "peer:local:local") as process:
            # The requests wait in the queues of the sockets until peili accepts them, so nothing has to be polled.
            for each in (local, local6):
                assert plain_get(f"{url(each)}/livez", timeout=30).status_code == 200
            assert plain_get(f"{url(peer)}/v2/", timeout=30).headers["peili-id"]
            assert plain_get(f"{url(peer)}/livez", timeout=30).status_code == 404
            assert process.stop() == 0
        with socket.create_connection(local.getsockname(), timeout=30):
            pass  # the socket is still open and listens: the next peili serves the clients that connect meanwhile


def test_hosts_toml_names_the_port_of_the_socket_and_not_the_configured_one(tmp_path: Path) -> None:
    root = tmp_path / "certs.d"
    hosts = [f'--set=hosts.config_path=["{root}"]', "--set=hosts.apply=true", *LONG_TIMEOUTS]
    command = [*COMMAND, "--set=local.listen=127.0.0.1:5050", *hosts]
    with closing(listener()) as local, launched(tmp_path, [local.fileno()], "local", command) as process:
        wait_for(lambda: "is up" in process.output(), "peili is up")
        assert f'[host."{url(local)}"]' in (root / "_default/hosts.toml").read_text()
        assert process.stop() == 0
    assert not root.exists()


def test_a_door_without_a_socket_listens_on_the_configured_address(tmp_path: Path) -> None:
    with closing(listener()) as peer, launched(tmp_path, [peer.fileno()], "peer") as process:
        found: re.Match[str] | None = wait_for(
            lambda: re.search(r"local door (\S+), peer door (\S+),", process.output()), "peili is up"
        )
        assert found is not None
        assert found[2] == "{}:{}".format(*peer.getsockname())
        assert plain_get(f"http://{found[1]}/livez").status_code == 200


def test_neither_the_sockets_nor_their_names_reach_children(tmp_path: Path) -> None:
    """A plug-in may start programs. If one of them inherited a socket, the port would outlive peili."""
    script = (
        "import os, subprocess, sys\n"
        "from peili.adapters.standalone.systemd import passed_sockets\n"
        "with passed_sockets(os.environ) as sockets:\n"
        "    assert len(sockets.local) == 1\n"
        "    subprocess.run([sys.executable, '-c', \"import os; print(sorted(os.listdir('/proc/self/fd'))[:4], "
        "[each for each in os.environ if each.startswith('LISTEN')])\"], close_fds=False, check=True)\n"
    )
    command = [sys.executable, "-c", script]
    with closing(listener()) as local, launched(tmp_path, [local.fileno()], "local", command) as process:
        process.succeed()
        assert process.output() == "['0', '1', '2', '3'] []\n"  # 3 is the directory that is listed


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "LISTEN_FDNAMES: FileDescriptorName=local, peer or ops in the socket's unit, not ''"),
        ("peili.socket", "LISTEN_FDNAMES: FileDescriptorName=local, peer or ops in the socket's unit, "),
    ],
)
def test_a_socket_without_the_name_of_a_door_is_one_line_and_exit_code_2(name: str, line: str, tmp_path: Path) -> None:
    with closing(listener()) as sock, launched(tmp_path, [sock.fileno()], name) as process:
        assert process.wait() == 2
        assert process.output().startswith(f"peili: {line}")
        assert len(process.output().splitlines()) == 1


def test_a_descriptor_that_is_not_a_tcp_socket_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, launched(tmp_path, [file.fileno()], "local") as process:
        assert process.wait() == 2
        expected = "peili: LISTEN_FDS: sockets from 3 on, but 3 is none: Socket operation on non-socket\n"
        assert process.output() == expected
    (tmp_path / "log").unlink()
    with socket.socket(type=socket.SOCK_DGRAM) as udp, launched(tmp_path, [udp.fileno()], "local") as process:
        assert process.wait() == 2
        assert process.output().startswith("peili: listen: a TCP socket, not ")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "local"},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "local"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
)
def test_sockets_for_another_process_are_ignored(environ: dict[str, str]) -> None:
    given = {**environ, "OTHER": "x"}
    with passed_sockets(given) as sockets:
        assert (sockets.local, sockets.peer) == ((), ())
        assert given == {"OTHER": "x"}


def test_a_missing_socket_is_an_error(tmp_path: Path) -> None:
    code = (
        "import os; from peili.adapters.standalone.systemd import passed_sockets\nwith passed_sockets(os.environ): pass"
    )
    environ = {**ENVIRONMENT, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "local"}
    launcher = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", launcher, sys.executable, "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{ConfigError.__module__}.ConfigError: LISTEN_FDS: sockets from 3 on, but 3 is none" in done.stderr


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate", path=ENVIRONMENT["PATH"]) is None, reason="not installed: systemd"
)
def test_systemd_socket_activate_starts_it_at_the_first_request(tmp_path: Path) -> None:
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    local, peer = (f"http://{each}" for each in ports)
    listen = [f"--listen={each}" for each in ports]
    process = Process(["systemd-socket-activate", *listen, "--fdname=local:peer", *COMMAND], tmp_path / "log")
    try:
        wait_for(lambda: "Listening on" in process.output(), "it listens")
        assert "local door" not in process.output()
        assert plain_get(f"{local}/livez", timeout=30).status_code == 200
        assert plain_get(f"{peer}/v2/", timeout=30).headers["peili-id"]
        wait_for(lambda: f"local door {ports[0]}, peer door {ports[1]}" in process.output(), "it logs that it is up")
        assert process.stop() == 0
    finally:
        process.kill()


@pytest.fixture
def directory() -> Generator[Path]:
    """A directory with a path that is short enough for a socket."""
    with short_directory() as directory:
        yield directory


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_the_socket(abstract: bool, directory: Path) -> None:
    address = f"@{directory}/notify" if abstract else f"{directory}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(30)
        with Notifier.from_environment({"NOTIFY_SOCKET": address}) as notifier:
            notifier.send("READY=1", "STATUS=up")
            notifier.alive()
        assert systemd.recv(100) == b"READY=1\nSTATUS=up"
        assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1", "x", "/" + "x" * 200])
def test_a_socket_that_cannot_be_reached_is_no_failure(address: str) -> None:
    with Notifier.from_environment({"NOTIFY_SOCKET": address}) as notifier:
        notifier.send("READY=1")


def test_a_full_queue_does_not_block(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, Notifier(f"{directory}/notify") as notifier:
        systemd.bind(f"{directory}/notify")
        for _ in range(1000):
            notifier.alive()


def test_states_that_find_the_queue_full_are_sent_with_the_next_heartbeat(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, Notifier(f"{directory}/notify") as notifier:
        systemd.bind(f"{directory}/notify")
        for _ in range(1000):
            notifier.alive()
        notifier.send("READY=1")
        notifier.send("STOPPING=1")
        systemd.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                assert systemd.recv(100) == b"WATCHDOG=1"
        notifier.alive()
        assert systemd.recv(100) == b"READY=1\nSTOPPING=1\nWATCHDOG=1"
        notifier.alive()
        assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_timeout_of_the_watchdog_comes_from_the_environment(environ: dict[str, str], seconds: float | None) -> None:
    with Notifier.from_environment(environ) as notifier:
        assert notifier.watchdog == seconds
