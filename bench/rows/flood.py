"""Measures the local door during a flood of connections at the peer door, against the local door without a flood.

One process on one processor makes the flood (bench/flood.py): 1,500 idle connections, then also 200 connections that
send many requests at once, and at a door with a key 200 connections that begin one handshake of TLS after the other. A
local request that fails ends the group.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.lab.processes import ENVIRONMENT, die_with_parent

from bench import budgets
from bench.clients import Clients, RequestResult, busy
from bench.measure import MILLISECONDS, Row, take_turns
from bench.mirrors import NO_PEERS, Peili, layout_store, peili
from bench.setting import Setting, manifest_path
from peili.mirror.tls.key_file import create_key_file

GROUP = "flood"
_IDLE, _PIPELINED, _HANDSHAKES = 1500, 200, 200


@dataclass(frozen=True, slots=True)
class LocalRequests:
    """HEAD requests for manifests at a local door, one after the other."""

    clients: Clients
    host: Peili
    paths: Sequence[str]
    seconds: float

    def without_flood(self) -> RequestResult:
        """Take a sample without a flood."""
        return self.clients.requests(self.host.local, "HEAD", self.paths, connections=1, seconds=self.seconds)

    def during_flood(self, *connections: int) -> RequestResult:
        """Take a sample during a flood at the peer door. For the numbers of connections, see bench/flood.py."""
        with _flood(self.host.peer, connections):
            return self.without_flood()


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of three floods: idle connections, these with pipelined requests, and handshakes of TLS."""
    images, key = setting.small, setting.new("key")
    create_key_file(key)
    settings = (*layout_store(images[0].path), *NO_PEERS)
    with ExitStack() as stack:
        clients = stack.enter_context(Clients())
        for closed, what, connections in (
            ((), f"{_IDLE:,} idle connections at the peer door", (_IDLE, 0, 0)),
            ((), f"these and {_PIPELINED} with many requests", (_IDLE, _PIPELINED, 0)),
            ((f"peer.shared_key_file={key}",), f"{_HANDSHAKES} with handshakes of TLS", (0, 0, _HANDSHAKES)),
        ):
            with peili(setting.new("log"), *settings, *closed) as host:
                requests = LocalRequests(clients, host, [*map(manifest_path, images)], 2 * setting.seconds)
                yield from _flood_rows(setting, requests, what, connections)


def _flood_rows(setting: Setting, requests: LocalRequests, what: str, connections: Sequence[int]) -> Iterator[Row]:
    sides = [lambda: requests.during_flood(*connections), requests.without_flood]
    during, without = take_turns(sides, rounds=setting.rounds)
    p99 = tuple(each.p99 for each in during), "without them", tuple(each.p99 for each in without)
    client = busy(during, without)
    yield Row(GROUP, f"local HEAD, {what}: p99", MILLISECONDS, *p99, budgets.FLOOD_P99, client=client)
    longest = tuple(each.longest for each in during)
    yield Row(GROUP, f"local HEAD, {what}: longest", MILLISECONDS, longest, budget=budgets.FLOOD_LONGEST)


@contextmanager
def _flood(port: int, connections: Sequence[int]) -> Generator[None]:
    """Flood `port`. Every connection has been opened once when the context is entered."""
    command = [sys.executable, "-m", "bench.flood", *map(str, (port, *connections))]
    with subprocess.Popen(
        die_with_parent(command), env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the flood did not start")
        try:
            yield
        finally:
            process.stdin.close()
