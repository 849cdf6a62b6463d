"""A forked peili is like the program: what it prints, how it ends, and where it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.lab.fork_server import ForkServer
from tests.lab.lab import make_network
from tests.lab.network import Node
from tests.lab.peili_process import Launch, PeiliProcess, Sections, launch_fork, launch_program
from tests.lab.processes import DEADLINE, Process, wait_for
from tests.support.directories import short_directory

SECTIONS: Sections = {"store": {"kind": "memory"}, "router": {"kind": "static", "peers": []}}


@pytest.fixture(scope="module")
def node() -> Generator[Node]:
    with make_network() as network:
        yield network.add_node("one")


@pytest.fixture(params=[launch_fork, launch_program], ids=["fork", "program"])
def launch(request: pytest.FixtureRequest) -> Launch:
    launch: Launch = request.param
    return launch


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["--version"], 0, "peili "),
        (["serve", "--check", "--set=store.kind=memory"], 0, "the configuration is valid\n"),
        (["serve", "--check", "--set=store.kind=none"], 2, "peili: "),
        (["status", "--set=local.listen=127.0.0.1:1"], 1, "peili: "),
    ],
)
def test_what_it_prints_and_its_status_are_those_of_the_program(
    launch: Launch, node: Node, tmp_path: Path, *, arguments: list[str], status: int, output: str
) -> None:
    process = launch(node, arguments, tmp_path / "log")
    assert process.wait() == status
    assert not process.is_running
    assert process.output().startswith(output)
    process.terminate()  # does nothing


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_do_what_they_do_to_the_program(
    launch: Launch, node: Node, number: signal.Signals, status: int
) -> None:
    with short_directory() as directory:
        peili = PeiliProcess(node, "one", directory / "peili", launch=launch)
        peili.start(SECTIONS)
        with pytest.raises(subprocess.TimeoutExpired):
            peili.process.wait(0.01)
        peili.process.send_signal(number)
        assert peili.process.wait() == status
        assert not peili.process.is_running
        assert ("stopped" in peili.log()) is (status == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs network namespaces")
def test_it_runs_in_the_network_namespace_of_the_node(launch: Launch, node: Node) -> None:
    with short_directory() as directory:
        peili = PeiliProcess(node, "one", directory / "peili", launch=launch)
        peili.start(SECTIONS)
        assert node.namespace is not None
        there = Path("/proc", str(peili.process.pid), "ns/net").stat()
        peili.stop()
        assert (there.st_dev, there.st_ino) == (node.namespace.stat().st_dev, node.namespace.stat().st_ino)
        assert there.st_ino != Path("/proc/self/ns/net").stat().st_ino


def test_threads_start_processes_at_the_same_time(node: Node, tmp_path: Path) -> None:
    def start(number: int) -> Process:
        return launch_fork(node, ["serve", "--check", f"--set=store.kind={number}"], tmp_path / str(number))

    with ThreadPoolExecutor(8) as pool:
        for number, process in enumerate(pool.map(start, range(8))):
            assert process.wait() == 2
            assert f"no store is called '{number}'" in process.output()


def test_a_thread_may_end_before_what_it_started(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(ForkServer).result()
    try:
        child = server.start(["--version"], tmp_path / "log")
        assert child.wait(DEADLINE) == 0
    finally:
        server.close()


def test_a_killed_run_leaves_no_process(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"""
from pathlib import Path
from tests.lab.network import LoopbackNetwork
from tests.lab.peili_process import PeiliProcess
peili = PeiliProcess(LoopbackNetwork().add_node("one"), "one", Path({str(tmp_path)!r}, "peili"))
peili.start({SECTIONS!r})
Path({str(started)!r}).with_suffix(".new").write_text(str(peili.process.pid))
Path({str(started)!r}).with_suffix(".new").rename({str(started)!r})
peili.process.wait(300)
"""
    run = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    wait_for(started.exists, "peili has started")
    pid = started.read_text()
    assert Path("/proc", pid).exists()
    run.kill()
    run.wait()
    wait_for(lambda: not Path("/proc", pid).exists(), "peili is gone")
