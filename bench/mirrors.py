"""The measured mirrors: `peili serve` as a process, and mirrors that a host agent embeds (bench/embedded.py)."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.processes import CommandFailed, Process, wait_for
from tests.support.certificates import Certificate
from tests.support.ports import free_ports

from bench.embedded import QUIET_HEARTBEAT, peer_id
from bench.processes import running

_STARTED = 600.0
"""Seconds in which many mirrors start, on a machine that is very busy with other work."""
_PER_PROCESS = 250
"""The most mirrors in one process. 1,000 processes would not fit into the memory of the machine."""


@dataclass(frozen=True, slots=True)
class Peili:
    """A running `peili serve`, with the ports of its doors."""

    local: int
    peer: int
    process: Process

    @property
    def url(self) -> str:
        """The URL of the peer door."""
        return f"http://127.0.0.1:{self.peer}"


def layout_store(path: Path) -> tuple[str, str]:
    """Return the settings of a store that is an OCI image layout."""
    return ("store.kind=oci-layout", f"store.path={path}")


def static_router(peers: Iterable[str | Mapping[str, str]]) -> tuple[str, str]:
    """Return the settings of a router that knows these peers, each a URL or a table."""
    return ("router.kind=static", f"router.peers=[{', '.join(map(_toml, peers))}]")


def _toml(peer: str | Mapping[str, str]) -> str:
    if isinstance(peer, str):
        return json.dumps(peer)
    return "{" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in peer.items()) + "}"


MEMORY_STORE = ("store.kind=memory",)
QUIET = (f"limits.directory_heartbeat={QUIET_HEARTBEAT}",)
"""The settings of a member of a `cluster`."""
NO_PEERS = static_router([])


@contextmanager
def peili(log: Path, *settings: str, peer: int | None = None) -> Generator[Peili]:
    """Run `peili serve` with these settings (``section.key=value``). It is ready when the context is entered.

    Args:
        log: The file of its output.
        settings: The settings.
        peer: The port of its peer door; by default a free one.
    """
    local, peer = free_ports(1)[0], free_ports(1)[0] if peer is None else peer
    doors = (f"local.listen=127.0.0.1:{local}", f"peer.listen=127.0.0.1:{peer}", "log.level=warning")
    with running(_command(*doors, *settings), log, [local, peer]) as process:
        wait_for(lambda: is_ready(local), f"peili at {local} is ready")
        yield Peili(local, peer, process)


def _command(*settings: str) -> list[str]:
    flags = [f"--set={setting}" for setting in settings]
    return [sys.executable, "-m", "peili.adapters.standalone", "serve", *flags]


def is_ready(local: int) -> bool:
    """Return whether the mirror with this local door answers that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", local, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def peers_known(local: int) -> int:
    """Return how many peers the mirror with this local door takes for alive. Raises OSError, HTTPException."""
    with closing(http.client.HTTPConnection("127.0.0.1", local, timeout=60)) as connection:
        connection.request("GET", "/status")
        known: int = json.loads(connection.getresponse().read())["peers_known"]
    return known


@contextmanager
def tls_holder(log: Path, layout: Path, certificate: Certificate) -> Generator[tuple[int, Process]]:
    """Run an embedded mirror of `layout`. Yields the port of its peer door, which uses mutual TLS, and the process."""
    local, peer = free_ports(2)
    job = {"layout": str(layout), "local": local, "peer": peer, "tls": certificate.files()}
    with running(_embedded(job), log, [local, peer]) as process:
        wait_for(lambda: is_ready(local), f"the mirror at {local} is ready")
        yield peer, process


@contextmanager
def empty_peers(log: Path, count: int) -> Generator[Sequence[str]]:
    """Run `count` mirrors with empty stores, several hundred per process. Yields the URLs of their peer doors."""
    shares = [min(_PER_PROCESS, count - start) for start in range(0, count, _PER_PROCESS)]
    files = [log.with_name(f"{log.name}-ports-{number}") for number in range(len(shares))]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(_embedded({"empty": share, "ports": str(file), "others": None}), log))
            for share, file in zip(shares, files, strict=True)
        ]
        ports = [port for process, file in zip(processes, files, strict=True) for port in _read_ports(process, file)]
        yield [f"http://127.0.0.1:{port}" for port in ports]


@contextmanager
def cluster(log: Path, count: int, others: Sequence[Mapping[str, str]]) -> Generator[Sequence[Mapping[str, str]]]:
    """Run `count` mirrors with empty stores, which form a cluster with `others`, the peers of a `static_router`.

    Yields the mirrors as peers for `static_router`.
    """
    file = log.with_name(f"{log.name}-ports")
    job = {"empty": count, "ports": str(file), "others": {each["id"]: each["url"] for each in others}}
    with running(_embedded(job), log) as process:
        urls = [f"http://127.0.0.1:{port}" for port in _read_ports(process, file)]
        yield [{"id": peer_id(number), "url": url} for number, url in enumerate(urls)]


def _read_ports(process: Process, file: Path) -> list[int]:
    """Return the ports that the process writes to `file` when it listens on them."""
    wait_for(lambda: file.exists() or not process.is_running, "many mirrors listen", timeout=_STARTED)
    if not file.exists():
        raise CommandFailed(f"the mirrors do not listen:\n{process.output()}")
    ports: list[int] = json.loads(file.read_text())
    return ports


def _embedded(job: object) -> list[str]:
    return [sys.executable, "-m", "bench.embedded", json.dumps(job)]
