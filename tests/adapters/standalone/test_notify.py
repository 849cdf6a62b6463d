"""sd_notify(3), spoken over real datagram sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.directories import short_directory

from peili.adapters.standalone.systemd.notify import Notifier


@pytest.fixture
def place() -> Generator[Path]:
    """Where a socket's path is short enough."""
    with short_directory() as directory:
        yield directory


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_the_socket(abstract: bool, place: Path) -> None:
    address = f"@{place}/notify" if abstract else f"{place}/notify"
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


def test_a_full_queue_does_not_block(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, Notifier(f"{place}/notify") as notifier:
        systemd.bind(f"{place}/notify")
        for _ in range(1000):
            notifier.alive()


def test_what_found_the_queue_full_is_told_with_the_next_heartbeat(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, Notifier(f"{place}/notify") as notifier:
        systemd.bind(f"{place}/notify")
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
def test_systemd_s_watchdog_is_known_from_the_environment(environ: dict[str, str], seconds: float | None) -> None:
    with Notifier.from_environment(environ) as notifier:
        assert notifier.watchdog == seconds
