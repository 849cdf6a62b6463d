"""A real DNS server on loopback, Debian's nsd, with one zone that a test changes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import dns.exception
import dns.message
import dns.query
from tests.lab.processes import DEADLINE, Process
from tests.program_cache import SEARCH_PATH
from tests.support.ports import free_port

HAS_NSD = shutil.which("nsd", path=SEARCH_PATH) is not None
# Without a database, because all servers of a machine would share one.
_CONFIGURATION = """\
server:
{addresses}
  username: ""
  chroot: ""
  zonesdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
  xfrdfile: "{directory}/xfrd.state"
  xfrdir: "{directory}"
  database: ""
  pidfile: ""
  server-count: 1
  ipv4-edns-size: 1232
  ipv6-edns-size: 1232
  rrl-ratelimit: 0
{options}
remote-control:
  control-enable: no
zone:
  name: "test."
  zonefile: "test.zone"
"""
_ZONE = """\
$ORIGIN test.
$TTL {ttl}
@ {ttl} SOA ns hostmaster {serial} 3600 600 86400 {ttl}
@ {ttl} NS ns
ns {ttl} A 127.0.0.1
{records}
"""


def name_server_configuration(directory: Path, address: str, port: int, records: Iterable[str]) -> Path:
    """Write the configuration and the zone of a server that the caller starts, and return the former's path."""
    text = _ZONE.format(ttl=60, serial=1, records="\n".join(records))
    (directory / "test.zone").write_text(text)
    return _write_configuration(directory, (address,), port)


def _write_configuration(directory: Path, addresses: Iterable[str], port: int, options: str = "") -> Path:
    listen = "\n".join(f"  ip-address: {each}@{port}" for each in addresses)
    file = directory / "nsd.conf"
    file.write_text(_CONFIGURATION.format(addresses=listen, directory=directory, options=options))
    return file


class NameServer:
    """A DNS server for the zone ``test.``

    Attributes:
        port: Its port on 127.0.0.1 and ::1, for UDP and TCP.
        ttl: The TTL in seconds of records that do not have one, and of negative answers.
    """

    def __init__(self, directory: Path, *, ttl: int = 0, options: str = "") -> None:
        self.port = free_port()
        self.ttl = ttl
        self._directory = directory
        self._serial = 0
        self._process: Process | None = None
        _write_configuration(directory, ("127.0.0.1", "::1"), self.port, options)

    @property
    def servers(self) -> list[str]:
        """The option ``servers`` of a router that asks this server."""
        return [f"127.0.0.1:{self.port}"]

    async def set(self, *records: str) -> None:
        """Replace the records of the zone, each as a line of a zone file. Returns when the server has them."""
        self._serial += 1
        text = _ZONE.format(ttl=self.ttl, serial=self._serial, records="\n".join(records))
        new = self._directory / "test.zone.new"
        new.write_text(text)
        new.replace(self._directory / "test.zone")
        if self._process is not None and self._process.is_running:
            self._process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(self._wait)

    async def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = ["nsd", "-d", "-c", str(self._directory / "nsd.conf")]
        self._process = Process(command, self._directory / "nsd.log")
        await asyncio.to_thread(self._wait)

    async def stop(self) -> None:
        """Stop the server, if it runs. Nothing listens on its port then."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)

    def _wait(self) -> None:
        """Wait until the server answers with the current serial number."""
        question = dns.message.make_query("test.", "SOA")
        ends = time.monotonic() + DEADLINE
        while time.monotonic() < ends:
            with suppress(OSError, dns.exception.DNSException):
                answer = dns.query.udp(question, "127.0.0.1", timeout=0.2, port=self.port).answer
                if answer and f" {self._serial} " in answer[0].to_text():
                    return
            time.sleep(0.02)
        raise TimeoutError(f"nsd does not answer: {(self._directory / 'nsd.log').read_text()}")


@asynccontextmanager
async def name_server(*records: str, ttl: int = 0, options: str = "") -> AsyncGenerator[NameServer]:
    """Run a server with these records. `options` are lines of the server's own configuration."""
    with TemporaryDirectory() as directory:
        server = NameServer(Path(directory), ttl=ttl, options=options)
        await server.set(*records)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
