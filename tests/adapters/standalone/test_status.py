"""`peili status` asks a running peili. `[ops] listen` is its address for operators."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.mirror.relay.pulling import path_of
from tests.support.plain_http import plain_client
from tests.support.stream_server import stream_server
from tests.support.waiting import until

from peili.adapters.standalone.cli import main
from peili.adapters.standalone.identity import default_identity
from peili.adapters.standalone.parsing import parse_config
from peili.adapters.standalone.status import render
from peili.mirror import Digest, Mirror, Peer, Serving, serve
from peili.mirror.status import names_by_address
from peili.mirror.support.log_lines import LoggedProblem
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
DATA = bytes(5 << 20)


@asynccontextmanager
async def hosts() -> AsyncGenerator[tuple[Mirror, Serving, MemoryStore]]:
    """Yield a host that knows one peer with `DATA` and one that does not answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        there = MemoryStore()
        there.add(DATA)
        other = Mirror(there, StaticRouter([]), identity="node-b")
        async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0") as peer:
            store = MemoryStore()
            alive = Peer("node-b", (f"http://{peer.peer_addresses[0]}",))
            dead = Peer("node-c", (f"http://127.0.0.1:{unused.getsockname()[1]}",))
            mirror = Mirror(store, StaticRouter([alive, dead]), identity="node-a")
            any_port = "127.0.0.1:0"
            async with mirror, serve(mirror, local=any_port, peer=any_port, ops=any_port) as serving:
                yield mirror, serving, store


async def status(serving: Serving, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    code = await asyncio.to_thread(main, ["status", "--url", f"http://{serving.ops_addresses[0]}", *options])
    assert code == 0
    return capsys.readouterr().out


async def test_it_shows_peers_bytes_by_source_and_problems(capsys: pytest.CaptureFixture[str]) -> None:
    async with hosts() as (mirror, serving, store):
        async with plain_client(base_url=f"http://{serving.local_addresses[0]}") as runtime:
            headers = {"User-Agent": "containerd/2.1"}
            assert (await runtime.get(path_of(Digest.of(DATA)), headers=headers)).content == DATA
            assert (await runtime.get(path_of(Digest.of(b"x" * 1000)))).status_code == 404
        store.add(b"x" * 1000)
        await until(lambda: mirror.accounting.totals().upstream == 1000)
        mirror.log.warning("something is\nwrong")
        text = await status(serving, capsys)
        document = json.loads(await status(serving, capsys, "--json"))
    assert re.match(r"node-a  peili \S+, up \S+ m?s\n", text)
    assert re.search(r"\n  store     MemoryStore, ready; shared with peers: \d+ keys\n", text)
    assert "\n  router    StaticRouter, ready; peers: 2, of which 1 does not answer\n" in text
    assert re.search(r"\n  urls      http://127\.0\.0\.1:\d+\n", text)
    assert re.search(r"asked by  containerd \(once, last \S+ m?s ago\), other \(once, last ", text)
    assert re.search(r"\n  from peers +5\.0 MiB +5\.0 MiB\n", text)
    assert re.search(r"\n  from upstream +1000 B +1000 B\n", text)
    assert re.search(r"\n  saved +99 % +99 %\n", text)
    assert re.search(r"\n  node-b +http://127\.0\.0\.1:\d+ +seen \S+ m?s ago +\S+ ms\n", text)
    assert re.search(r"\n  node-c +http://127\.0\.0\.1:\d+ +DOES NOT ANSWER, never seen: peer node-c: ", text)
    assert re.search(r"\n  docker.io/library/demo +in progress .* 5\.0 MiB from peers +1000 B from upstream", text)
    assert re.search(r"\n  \S+ m?s ago +warning +something is\\nwrong\n", text)
    saved = len(DATA) / (len(DATA) + 1000)
    assert document["received"] == {"store": 0, "peers": len(DATA), "upstream": 1000, "served": 0, "saved": saved}
    assert document["pulls"][0]["peers"] == {"node-b": len(DATA)}


async def test_it_shows_what_is_in_flight_and_from_whom(capsys: pytest.CaptureFixture[str]) -> None:
    digest = Digest.of(DATA)
    async with hosts() as (mirror, serving, _), plain_client() as runtime:
        url = f"http://{serving.local_addresses[0]}{path_of(digest)}"
        async with runtime.stream("GET", url) as response:  # reads nothing yet
            await until(lambda: any(each.sent for each in mirror.metrics.active))
            text = await status(serving, capsys)
            await response.aread()
    assert re.search(
        rf"\n\nin flight\n  docker.io/library/demo +{digest.encoded[:12]} +\S+ [KM]iB of 5\.0 MiB .*/s +from node-b\n",
        text,
    )


def test_an_address_that_one_peer_has_stands_for_it() -> None:
    peers = [Peer("b", ("http://10.0.0.2:1", "http://[fd00::2]:1")), Peer("c", ("http://10.0.0.3:1",))]
    again = Peer("d", ("http://10.0.0.3:2",))
    assert names_by_address([*peers, again]) == {"10.0.0.2": "b", "fd00::2": "b"}


async def test_watch_shows_it_on_the_whole_terminal_until_it_is_interrupted() -> None:
    async with hosts() as (_, serving, _store):
        terminal, end = pty.openpty()
        command = [sys.executable, "-m", "peili.adapters.standalone", "status", "--watch"]
        process = await asyncio.to_thread(
            lambda: subprocess.Popen(
                [*command, "--url", f"http://{serving.ops_addresses[0]}"],
                stdin=end,
                stdout=end,
                stderr=end,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"},
            )
        )
        os.close(end)
        seen = b""
        try:
            while b"saved" not in seen:
                seen += await asyncio.to_thread(os.read, terminal, 65536)
            process.send_signal(signal.SIGINT)
            reading = asyncio.create_task(asyncio.to_thread(_read_to_end, terminal))  # a full one blocks
            assert await asyncio.to_thread(process.wait, 60) == 130
            await reading
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
    assert b"\x1b[?1049h" in seen, "the alternate screen"
    assert b"node-a" in seen


def _read_to_end(terminal: int) -> None:
    with suppress(OSError):  # EIO: nobody has the other end open any more
        while os.read(terminal, 65536):
            pass


async def test_watch_with_json_needs_no_terminal() -> None:
    async with hosts() as (_, serving, _store):
        command = [sys.executable, "-m", "peili.adapters.standalone", "status", "--watch", "--json", "--url"]
        process = await asyncio.create_subprocess_exec(
            *command, f"http://{serving.ops_addresses[0]}", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        process.kill()
        await process.communicate()
    assert json.loads(line)["identity"] == "node-a"


def test_without_a_peili_one_line_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code = main(["status", f"--set=ops.listen={address}", "--set=store.kind=memory"])
    assert code == 1
    assert re.fullmatch(
        rf"peili: no peili answers at http://{address}: .*; is `peili serve` running, and with this configuration\?\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("command", [["status"], ["ping"], ["find", "redis"]])
@pytest.mark.parametrize(
    "url", ["http://[::", "http://a b", "127.0.0.1:5050", "ftp://127.0.0.1", "http://a/?b", "http://a..b", ""]
)
def test_a_url_that_is_none_is_wrong_usage(url: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--url", url]) == 2
    assert f"not a base URL: {url!a}; expected http://HOST:PORT" in capsys.readouterr().err


async def test_a_server_that_is_no_peili_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    async with hosts() as (_, serving, _store):
        url = f"http://{serving.local_addresses[0]}"
        code = await asyncio.to_thread(main, ["status", "--url", url])
    assert code == 1
    assert f"peili: {url}/status answers 404: " in capsys.readouterr().err


ANSWERS = (
    b"",
    b"{nope",
    b'{"a": "\xff"}',
    b"[" * 100_000,
    b"[]",
    b'"x"',
    b"{}",
    b"7",
    b'[{"name": 7}]',
    b'{"identity": "x"}',
)


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("command", [["status"], ["find", "redis"], ["find", "redis", "--test"], ["ping"]])
async def test_an_answer_that_is_not_understood_is_one_line(
    command: list[str], answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program answers, or a peili of another version."""

    async def serve_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        writer.write(head.encode() + answer)
        await writer.drain()

    async with stream_server(serve_answer) as port:
        url = f"http://127.0.0.1:{port}"
        code = await asyncio.to_thread(main, [*command, "--url", url])
        if command == ["ping"] and answer == b"[]":
            assert (code, capsys.readouterr().out) == (0, "no peer is known\n")
            return
        assert code == 1
        assert re.fullmatch(
            rf"peili: {url}/\w+ answers something that .* does not understand; .*\?\n", capsys.readouterr().err
        )
        assert await asyncio.to_thread(main, [*command, "--url", url, "--json"]) in {0, 1}


@pytest.mark.parametrize("host", ["xn--a", "xn--."])
def test_a_name_that_can_not_be_looked_up_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", f"http://{host}:5050"]) == 1
    assert capsys.readouterr().err.startswith(f"peili: http://{host}:5050 can't be asked: ")
    assert main(["ping", "\udcff", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("peili: http://127.0.0.1:1 can't be asked: ")


async def test_with_its_own_address_the_ops_app_is_only_there() -> None:
    async with hosts() as (_, serving, _store), plain_client() as client:
        assert (await client.get(f"http://{serving.ops_addresses[0]}/livez")).status_code == 200
        assert (await client.get(f"http://{serving.local_addresses[0]}/livez")).status_code == 404
        assert (await client.get(f"http://{serving.local_addresses[0]}/v2/")).status_code == 200
        assert (await client.get(f"http://{serving.ops_addresses[0]}/v2/")).status_code == 404


def test_a_status_with_nothing_in_it_is_readable() -> None:
    text = render(Mirror(MemoryStore(), StaticRouter([]), identity="me").status())
    assert "  store     MemoryStore, NOT READY" in text
    assert "\npeers: none is known\n" in text
    assert "asked by  nobody so far" in text
    assert "no URL: there is no peer door" in text


def test_a_peer_that_was_not_asked_is_not_said_to_answer() -> None:
    peer = {"id": "node-b", "name": "node-b", "urls": ["http://10.0.0.3:5051"]}
    status = Mirror(MemoryStore(), StaticRouter([]), identity="me").status()
    text = render({**status, "peers": [peer], "peers_known": 1})
    assert re.search(r"\n  node-b  http://10\.0\.0\.3:5051  not seen yet\n", text)
    assert "; peers: 1\n" in text


def test_the_last_problems_are_bounded_and_have_one_line() -> None:
    mirror = Mirror(MemoryStore(), StaticRouter([]))
    for number in range(100):
        mirror.log.getChild("part").error("problem %d\n%s", number, "x" * 5000)
    problems = list(mirror.log.problems)
    assert len(problems) == 32
    assert isinstance(problems[-1], LoggedProblem)
    assert (problems[-1].logger, problems[-1].level) == ("peili.part", "error")
    assert problems[-1].message.startswith(r"problem 99\nxxx")
    assert len(problems[-1].message) <= 400


def test_the_id_of_a_host_has_its_name_and_stays_the_same(tmp_path: Path) -> None:
    config = parse_config({})
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    one, again = (default_identity(config, machine_id=machine_id) for _ in range(2))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())
    assert one == again
    assert re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}", one)
    assert (
        default_identity(
            replace(config, local=replace(config.local, listen=("127.0.0.1:6000",))), machine_id=machine_id
        )
        != one
    )
    machine_id.write_text("f123456789abcdef0123456789abcdef\n")
    assert default_identity(config, machine_id=machine_id) != one
    random = {default_identity(config, machine_id=tmp_path / "none") for _ in range(2)}
    any_port = replace(config, local=replace(config.local, listen=("127.0.0.1:0",)))
    random |= {default_identity(any_port, machine_id=machine_id) for _ in range(2)}
    assert len(random) == 4
    assert all(each.startswith(f"{name}-") for each in random)
