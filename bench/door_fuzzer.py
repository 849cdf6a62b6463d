"""Fuzzes doors with atheris, as a process of its own: `python -m bench.door_fuzzer DOOR,… FOLDER [OPTIONS]`.

A DOOR is ``local``, ``peer``, ``peer-tls`` (inside mutual TLS) or ``peer-records`` (wrong records of TLS). OPTIONS are
those of libFuzzer, such as ``-max_total_time=60``. FOLDER gets the stores, the corpora and the output, in DOOR.log.
Each input is sent to the door on a new connection, with a good request behind it (door_clients.py). An input is a fault
if the connection stays open, if a status is 500 or the like, if anything is logged as an error, or if a response
contains a path of this host. After some inputs, the door must answer a good request, and the process must have no more
open files and tasks than before.

libFuzzer ends its process, so each door is fuzzed by a child, one after the other. When a child has ended, a line has
the door and the exit code.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.certificates import make_certificate

from bench.door_clients import PATIENCE, DoorClient, Fault, PlainClient, RecordClient, TlsClient

atheris: Any = importlib.import_module("atheris")  # it has no types, and no wheels for some versions of Python

with atheris.instrument_imports(include=["peili.mirror"]):
    from peili.mirror import Limits, Mirror, Peer, serve
    from peili.mirror.resolvers import LocalResolver
    from peili.mirror.testing import make_layout
    from peili.mirror.tls.peer_certificates import PeerCertificates
    from peili.routers.static import StaticRouter
    from peili.stores.oci_layout import OciLayoutStore

_STATUS = re.compile(rb"(?:\A|\n|\})HTTP/1\.[01] ([0-9]{3}) ")
_CONTROL = 20
"""After so many inputs, the door must answer a good request, and nothing may be left of the others."""
_SPARE = 8
"""How many more files and tasks the process may have then than in the beginning."""
_KEEP_ALIVE = 1
"""Seconds for which the door keeps an idle connection. If an input states a long body, the good request is a part of
it, and the door waits for the rest.
"""
_LIMITS = Limits(
    header_timeout=0.2, reader_timeout=2, lookup_timeout=0.5, first_byte_timeout=0.5, wait_timeout=0.5, connections=64
)


class DoorUnderTest:
    """A mirror in a thread.

    Args:
        door: See the module.
        folder: Where the store is.
    """

    def __init__(self, door: str, folder: Path) -> None:
        self.path = str(folder)
        self.errors: list[str] = []
        self._ready = threading.Event()
        self._door = door
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.image = make_layout(folder / "layout", layers=[300, 100_000], tags=["registry.example/demo:v1"])
        self._certificate = make_certificate(folder / "trusted") if door.startswith("peer-") else None
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: self.errors.append(record.getMessage())  # type: ignore[method-assign]
        for name in ("peili", "asyncio", "uvicorn"):
            logging.getLogger(name).addHandler(handler)
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        if not self._ready.wait(PATIENCE):
            raise Fault("the door does not start")
        self.client = self._client(folder)
        self.check_answers()
        self._most_left = self._left() + _SPARE

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        router = StaticRouter([Peer("h1", ("http://127.0.0.1:9",))])
        store = OciLayoutStore(self.image.path)
        # Imported by its name, because the package has a function that is called the same.
        vars(importlib.import_module("peili.mirror.serve"))["_KEEP_ALIVE"] = _KEEP_ALIVE
        certificate = self._certificate
        tls = None if certificate is None else PeerCertificates(certificate.ca, certificate.cert, certificate.key)
        mirror = Mirror(
            store, router, LocalResolver(), identity="h0", insecure=tls is None, peer_tls=tls, limits=_LIMITS
        )
        async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
            await mirror.wait_ready(PATIENCE)
            [address] = serving.local_addresses if self._door == "local" else serving.peer_addresses
            self._port = int(address.rpartition(":")[2])
            self._ready.set()
            await asyncio.Event().wait()

    def _client(self, folder: Path) -> DoorClient:
        if self._certificate is None:
            return PlainClient(self._port)
        if self._door == "peer-tls":
            return TlsClient(self._port, self._certificate)
        return RecordClient(self._port, self._certificate, make_certificate(folder / "foreign"))

    def check_answers(self) -> None:
        """Raise Fault if the door answers no good request. A busy machine may need several attempts."""
        end = time.monotonic() + PATIENCE
        while not self.client.get().startswith(b"HTTP/1.1 200 "):
            if time.monotonic() > end:
                raise Fault("the door does not answer a good request")

    def check_left(self) -> None:
        """Raise Fault if connections or tasks are left of earlier inputs."""
        end = time.monotonic() + PATIENCE
        while (left := self._left()) > self._most_left:
            if time.monotonic() > end:
                raise Fault(f"{left} files and tasks, instead of {self._most_left}")
            time.sleep(0.05)

    def _left(self) -> int:
        return len([*Path("/proc/self/fd").iterdir()]) + len(asyncio.all_tasks(self._loop))


def seeds(image: Any) -> list[bytes]:
    """Return requests from which the fuzzer starts. All are good, but the last one has too little of a body."""
    layer, name = image.layers[0].digest, "registry.example/demo"
    paths = ["/v2/", f"/v2/{name}/tags/list?n=1", f"/v2/demo/blobs/{layer}?ns=registry.example"]
    paths += [f"/v2/{name}/manifests/{image.target.digest}", f"/_router/keys/{layer}", "/livez", "/status"]
    heads = ["Range: bytes=0-9,20-29", "If-None-Match: *", "Peili-In-Flight: 1", "Origin: null", "Content-Length: 3"]
    found = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
    found += [f"GET {paths[2]} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() for head in heads]
    bodies = (
        b'{"session":"s","sequence":0,"interval":5,"homes":["h0"],"synced":true,"have":[["k",1]],"gone":[]}',
        b"{}",
    )
    for path in ("holdings", "holders", "acquire", "leases"):
        for body in bodies:
            head = f"POST /_router/directory/{path} HTTP/1.1\r\nHost: localhost\r\nPeili-Id: h1\r\n"
            found.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    found.append(b"POST /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{}")
    return found


def fuzz(door: str, folder: Path, options: list[str]) -> None:
    """Fuzz a door. libFuzzer ends the process."""
    folder.mkdir()
    under_test = DoorUnderTest(door, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(under_test.client.seeds(seeds(under_test.image))):
        (corpus / f"seed-{number}").write_bytes(seed)
    count = 0

    def check(data: bytes) -> None:
        nonlocal count
        count += 1
        received = under_test.client.exchange(data)
        statuses = [int(each) for each in _STATUS.findall(received)]
        if any(each >= 500 and each != 503 for each in statuses):
            raise Fault(f"statuses {statuses}")
        if under_test.path.encode() in received:
            raise Fault("a response contains a path of this host")
        if under_test.errors:
            raise Fault(under_test.errors[0])
        if count % _CONTROL == 0:
            under_test.check_answers()
            under_test.check_left()

    all_options = ["-max_len=2000", "-timeout=60", f"-artifact_prefix={folder}/", *options]
    atheris.Setup([sys.argv[0], *all_options, str(corpus)], check)
    with suppress(KeyboardInterrupt):
        atheris.Fuzz()


def main(argv: list[str]) -> None:
    """Fuzz the doors. To instrument the modules takes ten seconds, so the children get them from this process."""
    folder, options = Path(argv[2]), argv[3:]
    for door in argv[1].split(","):
        child = os.fork()
        if not child:
            with (folder / f"{door}.log").open("wb") as output:
                os.dup2(output.fileno(), sys.stderr.fileno())
            fuzz(door, folder / door, options)
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{door} {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv)
