"""sd_listen_fds(3): `peili serve` on sockets that somebody opened before it began."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.lab.processes import ENVIRONMENT, Process, wait_for
from tests.support.ports import free_ports

from peili.adapters.standalone.systemd.activation import activated
from peili.mirror import ConfigError

COMMAND = [
    *(sys.executable, "-m", "peili.adapters.standalone", "serve", "--set=store.kind=memory"),
    *("--set=router.kind=static", "--set=router.peers=[]", "--set=local.listen=127.0.0.1:0"),
    "--set=peer.listen=[]",
]
# As systemd does between fork and exec: the sockets become 3 and on, and LISTEN_PID is the process's own.
LAUNCHER = """\
import fcntl, os, sys
numbers, names, *command = sys.argv[1:]
given = [int(each) for each in numbers.split()]
numbers = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 100) for each in given]
for each in given:
    os.close(each)
for place, each in enumerate(numbers):
    os.dup2(each, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


@contextmanager
def launched(
    directory: Path, descriptors: Sequence[int], names: str, command: Sequence[str] = COMMAND
) -> Generator[Process]:
    """`command` with `descriptors` as its own from 3 on."""
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
            # The requests wait in the sockets' queues until peili takes them: nothing has to be polled.
            for each in (local, local6):
                assert httpx.get(f"{url(each)}/livez", timeout=30).status_code == 200
            assert httpx.get(f"{url(peer)}/v2/", timeout=30).headers["peili-id"]
            assert httpx.get(f"{url(peer)}/livez", timeout=30).status_code == 404
            assert process.stop() == 0
        with socket.create_connection(local.getsockname(), timeout=30):
            pass  # it is ours still, and listens: the next peili finds who came meanwhile


def test_hosts_toml_names_the_socket_s_port_and_not_the_configured_one(tmp_path: Path) -> None:
    root = tmp_path / "certs.d"
    hosts = [f'--set=hosts.config_path=["{root}"]', "--set=hosts.apply=true", "--set=limits.start_timeout=60"]
    command = [*COMMAND, "--set=local.listen=127.0.0.1:5050", *hosts]
    with closing(listener()) as local, launched(tmp_path, [local.fileno()], "local", command) as process:
        wait_for(lambda: "is up" in process.output(), "peili is up")
        assert f'[host."{url(local)}"]' in (root / "_default/hosts.toml").read_text()
        assert process.stop() == 0
    assert not root.exists()


def test_a_door_without_a_socket_listens_where_the_configuration_says(tmp_path: Path) -> None:
    with closing(listener()) as peer, launched(tmp_path, [peer.fileno()], "peer") as process:
        found: re.Match[str] | None = wait_for(
            lambda: re.search(r"runtime door (\S+), peer door (\S+),", process.output()), "peili is up"
        )
        assert found is not None
        assert found[2] == "{}:{}".format(*peer.getsockname())
        assert httpx.get(f"http://{found[1]}/livez").status_code == 200


def test_neither_the_sockets_nor_their_names_reach_children(tmp_path: Path) -> None:
    """A plug-in may start programs; a port held by one of them would outlive peili."""
    script = (
        "import os, subprocess, sys\n"
        "from peili.adapters.standalone.systemd.activation import activated\n"
        "with activated(os.environ) as sockets:\n"
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
        ("", "LISTEN_FDNAMES: FileDescriptorName=local or FileDescriptorName=peer in the socket's unit, not ''"),
        ("peili.socket", "LISTEN_FDNAMES: FileDescriptorName=local or FileDescriptorName=peer in the socket's unit, "),
    ],
)
def test_a_socket_that_has_no_door_s_name_is_one_line_and_exit_code_2(name: str, line: str, tmp_path: Path) -> None:
    with closing(listener()) as sock, launched(tmp_path, [sock.fileno()], name) as process:
        assert process.wait() == 2
        assert process.output().startswith(f"peili: {line}")
        assert len(process.output().splitlines()) == 1


def test_what_is_no_tcp_socket_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
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
def test_sockets_that_are_meant_for_another_process_are_left_alone(environ: dict[str, str]) -> None:
    given = {**environ, "OTHER": "x"}
    with activated(given) as sockets:
        assert (sockets.local, sockets.peer) == ((), ())
        assert given == {"OTHER": "x"}


def test_more_sockets_than_there_are_is_said(tmp_path: Path) -> None:
    code = (
        "import os; from peili.adapters.standalone.systemd.activation import activated\n"
        "with activated(os.environ): pass"
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
def test_systemd_s_own_activator_starts_it_at_the_first_request(tmp_path: Path) -> None:
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    local, peer = (f"http://{each}" for each in ports)
    listen = [f"--listen={each}" for each in ports]
    process = Process(["systemd-socket-activate", *listen, "--fdname=local:peer", *COMMAND], tmp_path / "log")
    try:
        wait_for(lambda: "Listening on" in process.output(), "it listens")
        assert "runtime door" not in process.output()
        assert httpx.get(f"{local}/livez", timeout=30).status_code == 200
        assert httpx.get(f"{peer}/v2/", timeout=30).headers["peili-id"]
        assert f"runtime door {ports[0]}, peer door {ports[1]}" in process.output()
        assert process.stop() == 0
    finally:
        process.kill()
