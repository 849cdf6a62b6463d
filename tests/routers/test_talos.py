"""The router whose members Talos has discovered: from a file, from a command, and with errors of both."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.lab.processes import wait_for
from tests.routers.talos_output import member, printed
from tests.support.neighbours import entered, peer_ids
from tests.support.waiting import until

from peili.mirror import ConfigError, Limits, Peer, Plugins
from peili.routers.file import source as file_source
from peili.routers.file.source import FileSource, SourceError
from peili.routers.talos import TalosRouter
from peili.routers.talos import router as talos_router
from peili.routers.talos.members import InvalidMembers, parse_members
from peili.routers.talos.source import CommandSource

INTERVAL = 0.05
WORKER, CONTROL_PLANE = "2uJHhHTNcAgVdyJ7ABnPlwmwmIYgCmlLQ4pGOt0L6rKA", "b3DebkPaCRLTLLWaeRF1ejGaR0lK3m79jRJcPn0mfA6C"
DOCUMENTED = printed(
    [
        member(
            CONTROL_PLANE,
            "172.20.0.2",
            "fd83:b1f7:fcb5:2802:8c13:71ff:feaf:7c94",
            hostname="talos-default-controlplane-1",
            machineType="controlplane",
            controlPlane={"port": 6443},
        ),
        member(WORKER, "172.20.0.5", hostname="talos-default-worker-1"),
    ]
)


def labels(hostname: str, kind: str) -> dict[str, str]:
    return {"hostname": hostname, "machineType": kind, "operatingSystem": "Talos (v1.13.0)"}


def test_members_become_peers() -> None:
    assert parse_members(DOCUMENTED, "https", 5051) == [
        Peer(
            CONTROL_PLANE,
            ("https://172.20.0.2:5051", "https://[fd83:b1f7:fcb5:2802:8c13:71ff:feaf:7c94]:5051"),
            labels=labels("talos-default-controlplane-1", "controlplane"),
        ),
        Peer(WORKER, ("https://172.20.0.5:5051",), labels=labels("talos-default-worker-1", "worker")),
    ]


def test_members_in_a_list_or_from_several_nodes_are_the_same_peers() -> None:
    one, two = member("one", "10.0.0.1"), member("two", "10.0.0.2")
    peers = parse_members(printed([one, two]), "http", 1)
    assert parse_members(printed([[one, two]]), "http", 1) == peers
    assert parse_members(printed([one, two, two, one]), "http", 1) == peers


def test_addresses_that_other_hosts_can_not_reach_are_left_out() -> None:
    addresses = ["127.0.0.1", "::1", "fe80::1", "fe80::1%eth0", "fd00::1%eth0", "0.0.0.0", "169.254.1.1", "ff02::1"]
    peers = parse_members(printed([member("one", *addresses), member("two", "fe80::1", "10.0.0.2")]), "http", 1)
    assert [(peer.id, peer.urls) for peer in peers] == [("two", ("http://10.0.0.2:1",))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no member has an address; expected the output of talosctl get members -o json"),
        (printed([member("one")]), "no member has an address; expected the output of talosctl get members -o json"),
        (
            "NODE  NAMESPACE",
            "not JSON: Expecting value: line 1 column 1 (char 0); expected the output of talosctl",
        ),
        (DOCUMENTED[:-10], "not JSON: Unterminated string starting at: line 46"),
        ("[" * 100_000, "not JSON: nested too deeply; "),
        ("7", "member 1: an object with metadata and spec, not 7"),
        ('{"metadata": {}}', "member 1: an object with metadata and spec, not {'metadata': {}}"),
        ('{"metadata": {"type": "Nodes"}, "spec": {}}', "member 1: metadata.type is Members.cluster.talos.dev, not"),
        (printed([member("one", "10.0.0.1"), member("", "a", nodeId=7)]), "member 2: spec.nodeId is a text, not 7"),
        (printed([member("\ud800", "10.0.0.1")]), "member 1: spec.nodeId is a text, not '\\ud800'"),
        (printed([member("one", addresses=None)]), "member 1: spec.addresses is a list, not None"),
        (printed([member("one", "10.0.0.1/24")]), "member 1: spec.addresses has IP addresses, not '10.0.0.1/24'"),
    ],
)
def test_the_error_for_malformed_text_is_one_line(text: str, why: str) -> None:
    with pytest.raises(InvalidMembers) as raised:
        parse_members(text, "http", 5051)
    assert str(raised.value).startswith(why)
    assert len(str(raised.value).splitlines()) == 1


def _mutated(value: Any) -> Iterator[Any]:
    """Yield copies of `value`, each with one part replaced."""
    yield from (None, 7, "x", [], {}, [None], {"x": 1})
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        for key in table:
            yield {name: each for name, each in table.items() if name != key}
            yield from ({**table, key: each} for each in _mutated(table[key]))


def test_any_change_of_a_member_is_parsed_or_an_error() -> None:
    for each in _mutated(member("one", "10.0.0.1")):
        try:
            assert [peer.urls for peer in parse_members(printed([each]), "http", 1)] == [("http://10.0.0.1:1",)]
        except InvalidMembers:
            continue


@given(
    st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(lambda v: printed([v]))
)
@example("1" * 5000)
@example(DOCUMENTED)
def test_any_text_is_parsed_or_an_error(text: str) -> None:
    try:
        peers = parse_members(text, "http", 5051)
    except InvalidMembers as error:
        peers = [Peer(str(error), ())]
    assert peers
    assert all(len(peer.id.splitlines()) == 1 for peer in peers), "one line, or the id of a member"


EXAMPLE = 'command, as in ["talosctl", "get", "members", "-o", "json"]'
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, f"file: either file, a path, or {EXAMPLE}"),
    ({"file": "a", "command": ["b"]}, f"file: either file, a path, or {EXAMPLE}"),
    ({"file": ""}, "file: the path of a file, not ''"),
    ({"file": 7}, "file: the path of a file, not 7"),
    ({"command": "talosctl"}, f"command: a list of a program and its arguments, {EXAMPLE[9:]}, not 'talosctl'"),
    ({"command": [1]}, f"command: a list of a program and its arguments, {EXAMPLE[9:]}, not [1]"),
    ({"command": []}, f"command: a list of a program and its arguments, {EXAMPLE[9:]}, not []"),
    ({"file": "a", "port": 0}, "port: a port from 1 to 65535, not 0"),
    ({"file": "a", "port": True}, "port: a port from 1 to 65535, not true"),
    ({"file": "a", "scheme": "ftp"}, "scheme: one of http, https, not 'ftp'"),
    ({"file": "a", "interval": 0}, "interval: seconds, 0.05 or more, not 0"),
    ({"file": "a", "interval": float("nan")}, "interval: seconds, 0.05 or more, not nan"),
    ({"file": "a", "members": []}, "members: unknown option; there are: file, command, port, scheme, interval"),
]


@pytest.mark.parametrize(("config", "line"), WRONG)
def test_the_error_for_a_wrong_option_is_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TalosRouter.from_config(config)
    assert str(raised.value) == line


def test_the_router_is_found_by_name() -> None:
    assert isinstance(Plugins().router("talos", {"file": "/run/members.json"}), TalosRouter)


def replace(file: Path, text: str) -> None:
    """Write a file that the router may be reading."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.anyio
async def test_a_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "members.json"
    router = TalosRouter.from_config({"file": str(file), "interval": INTERVAL, "port": 7})
    async with entered(router):
        assert not router.ready(), "the members are not known yet"
        replace(file, printed([member("one", "127.0.0.2", "10.0.0.1")]))
        await until(router.ready)
        assert [peer.urls for peer in router.peers()] == [("http://10.0.0.1:7",)]
        replace(file, printed([member("one", "10.0.0.1"), member("two", "10.0.0.2")]))
        await until(lambda: peer_ids(router) == ["one", "two"])
        replace(file, printed([member("two", "10.0.0.2")]))
        await until(lambda: peer_ids(router) == ["two"])


@pytest.mark.anyio
async def test_an_error_is_logged_once_and_the_last_members_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    file = tmp_path / "members.json"
    router = TalosRouter.from_config({"file": str(file), "interval": INTERVAL})
    replace(file, printed([member("one", "10.0.0.1")]))
    async with entered(router, limits=Limits(backoff_min=60, backoff_max=60)):
        await until(router.ready)
        replace(file, "nonsense")
        await until(lambda: len(warnings()) == 1)
        reads = 3
        await asyncio.sleep(reads * INTERVAL)  # the file is read again, and nothing is logged
        file.unlink()
        await until(lambda: len(warnings()) == 2)
        assert peer_ids(router) == ["one"]
        replace(file, printed([member("two", "10.0.0.2")]))
        await until(lambda: peer_ids(router) == ["two"])
    start = f"the members can't be read, the last known ones stay: {file}: "
    assert [line.removeprefix(start) for line in warnings()] == [
        "not JSON: Expecting value: line 1 column 1 (char 0); expected the output of talosctl get members -o json",
        "No such file or directory",
    ]


@pytest.mark.anyio
async def test_a_file_is_only_read_if_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "members.json"
    file.write_text("a")
    source = FileSource(file)
    assert await source.read() == "a"
    assert await source.read() is None
    file.write_text("bb")
    assert await source.read() is None, "its writer may not be done"
    assert await source.read() == "bb"
    other = tmp_path / "new.json"
    other.write_text("cc")
    other.replace(file)
    assert await source.read() == "cc", "a new file is complete"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("module", "function"),
    [(file_source, "_signature_of"), (file_source, "read_file"), (talos_router, "parse_members")],
)
async def test_reading_a_file_does_not_block_the_loop(
    module: ModuleType, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, called, go_on, went_on = getattr(module, function), threading.Event(), threading.Event(), list[bool]()

    def slow(*args: Any) -> Any:
        called.set()
        went_on.append(go_on.wait(60))
        return original(*args)

    monkeypatch.setattr(module, function, slow)
    file = tmp_path / "members.json"
    file.write_text(printed([member("one", "10.0.0.1")]))
    async with entered(router := TalosRouter.from_config({"file": str(file), "interval": INTERVAL})):
        await until(called.is_set)
        assert not router.ready()
        go_on.set()
        await until(lambda: peer_ids(router) == ["one"])
    assert all(went_on)


@pytest.mark.anyio
async def test_a_path_that_is_no_regular_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SourceError, match=r"^it is not a file$"):
            await FileSource(path).read()
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(SourceError, match=r"^it is not UTF-8$"):
        await FileSource(tmp_path / "latin").read()


def python(program: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.mark.anyio
async def test_a_command_is_run_repeatedly(tmp_path: Path) -> None:
    file = tmp_path / "members.json"
    file.write_text(printed([member("one", "10.0.0.1")]))
    program = "import pathlib, sys; print(pathlib.Path(sys.argv[1]).read_text())"
    router = TalosRouter.from_config({"command": python(program, file), "interval": INTERVAL})
    async with entered(router):
        await until(lambda: peer_ids(router) == ["one"])
        file.write_text(printed([member("two", "10.0.0.2")]))
        await until(lambda: peer_ids(router) == ["two"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/no/such/program"], "No such file or directory"),
        (python("import sys; sys.exit(3)"), "it ended with 3"),
        (python("import sys; sys.exit('\\nrpc error: ü\\n')"), "it ended with 1: 'rpc error: \\xfc'"),
        (python("import os; os.write(1, b'\\xff')"), "it is not UTF-8"),
        (python("import os\nwhile True: os.write(1, b'[' * 65536)"), "it has not ended after 1 s"),
        (python("import sys\nfor _ in range(300): sys.stdout.write('[' * 65536)"), "more than 16 MiB"),
    ],
)
async def test_the_error_of_a_command_says_why(command: list[str], why: str) -> None:
    source = CommandSource(command, timeout=1 if "while" in command[-1] else 30)
    with pytest.raises(SourceError) as raised:
        await source.read()
    assert str(raised.value) == why


SPAWNS = """\
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid} ")
if sys.argv[2] == "stay":
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Return whether the process has ended, zombies included."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.anyio
@pytest.mark.parametrize("behavior", ["stay", "exit"])
async def test_a_command_and_its_children_are_killed_on_timeout_and_cancellation(tmp_path: Path, behavior: str) -> None:
    pids = tmp_path / "pids"

    def running() -> list[int]:
        return [int(each) for each in pids.read_text().split()] if pids.exists() else []

    async def end_by_timeout() -> None:
        timeout = 1
        while len(running()) < 2:  # on a busy machine, the program may need more time to start
            with pytest.raises(SourceError, match=f"it has not ended after {timeout} s"):
                await CommandSource(python(SPAWNS, pids, behavior), timeout=timeout).read()
            timeout *= 2

    async def end_by_exit() -> None:
        async with entered(TalosRouter.from_config({"command": python(SPAWNS, pids, behavior)})):
            await until(lambda: len(running()) == 2)

    async def end_by_cancellation(steps: int, times: int) -> None:
        reading = asyncio.create_task(CommandSource(python(SPAWNS, pids, behavior)).read())
        for _ in range(steps):
            await asyncio.sleep(0)
        wait_for(lambda: len(running()) == 2, "both processes run, while the loop is blocked")
        for _ in range(times):
            reading.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await asyncio.wait([reading])
        assert reading.cancelled()

    starts = [partial(end_by_cancellation, steps, times) for steps in (2, 3, 4) for times in (1, 2)]
    ends: list[Callable[[], Awaitable[None]]] = [end_by_timeout, end_by_exit, *starts]
    for end in ends:
        pids.unlink(missing_ok=True)
        await end()
        assert len(running()) == 2
        await until(lambda: all(gone(pid) for pid in running()))
