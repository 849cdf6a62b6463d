"""Fuzzes doors with atheris, as a process of its own: `python -m bench.door_fuzzer DOOR,… FOLDER [OPTIONS]`.

OPTIONS are those of libFuzzer, such as ``-max_total_time=60``. FOLDER gets the stores, the corpora and the output, in
DOOR.log. Each input is sent to the door on a new connection, with a good request behind it. An input is a fault
if the connection stays open, if a status is 500 or the like, if anything is logged as an error, if a response contains
a path of this host, or if the door does not answer afterwards.

libFuzzer ends its process, so each door is fuzzed by a child, one after the other. When a child has ended, a line has
the door and the exit code.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # it has no types, and no wheels for some versions of Python

with atheris.instrument_imports(include=["peili.mirror"]):
    from peili.mirror import Limits, Mirror, Peer, serve
    from peili.mirror.resolvers import LocalResolver
    from peili.mirror.testing import make_layout
    from peili.routers.static import StaticRouter
    from peili.stores.oci_layout import OciLayoutStore

_LAST = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_STATUS = re.compile(rb"(?:\A|\n|\})HTTP/1\.[01] ([0-9]{3}) ")
_PATIENCE = 20.0
_CONTROL = 200
"""After so many inputs, the door must answer a good request."""
_LIMITS = Limits(header_timeout=0.2, reader_timeout=2, lookup_timeout=0.5, first_byte_timeout=0.5, wait_timeout=0.5)


class Fault(Exception):
    """The door has broken a rule."""


class DoorUnderTest:
    """A mirror in a thread.

    Args:
        door: ``local`` or ``peer``.
        folder: Where the store is.
    """

    def __init__(self, door: str, folder: Path) -> None:
        self.path = str(folder)
        self.errors: list[str] = []
        self._ready = threading.Event()
        self.port = 0
        self._door = door
        self.image = make_layout(folder / "layout", layers=[300, 100_000], tags=["registry.example/demo:v1"])
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: self.errors.append(record.getMessage())  # type: ignore[method-assign]
        for name in ("peili", "asyncio", "uvicorn"):
            logging.getLogger(name).addHandler(handler)
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        if not self._ready.wait(_PATIENCE):
            raise Fault("the door does not start")

    async def _run(self) -> None:
        router = StaticRouter([Peer("h1", ("http://127.0.0.1:9",))])
        store = OciLayoutStore(self.image.path)
        mirror = Mirror(store, router, LocalResolver(), identity="h0", insecure=True, limits=_LIMITS)
        async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
            await mirror.wait_ready(_PATIENCE)
            [address] = serving.local_addresses if self._door == "local" else serving.peer_addresses
            self.port = int(address.rpartition(":")[2])
            self._ready.set()
            await asyncio.Event().wait()

    def exchange(self, data: bytes) -> bytes:
        """Send `data` on a new connection, and return all bytes until it is closed. Raises Fault if it stays open."""
        received = bytearray()
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as connection:
            try:
                connection.sendall(data)
                while piece := connection.recv(1 << 16):
                    received += piece
            except TimeoutError as error:
                raise Fault("the connection stays open") from error
            except ConnectionError:
                pass
        return bytes(received)


def seeds(image: Any) -> list[bytes]:
    """Return good requests, from which the fuzzer starts."""
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
    return found


def fuzz(door: str, folder: Path, options: list[str]) -> None:
    """Fuzz a door. libFuzzer ends the process."""
    folder.mkdir()
    under_test = DoorUnderTest(door, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(under_test.image)):
        (corpus / f"seed-{number}").write_bytes(seed)
    count = 0

    def check(data: bytes) -> None:
        nonlocal count
        count += 1
        received = under_test.exchange(data + b"\r\n\r\n" + _LAST)
        statuses = [int(each) for each in _STATUS.findall(received)]
        if any(each >= 500 and each != 503 for each in statuses):
            raise Fault(f"statuses {statuses}")
        if under_test.path.encode() in received:
            raise Fault("a response contains a path of this host")
        if under_test.errors:
            raise Fault(under_test.errors[0])
        if count % _CONTROL == 0 and not under_test.exchange(_LAST).startswith(b"HTTP/1.1 200 "):
            raise Fault("the door does not answer a good request")

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
