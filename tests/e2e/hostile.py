"""A hostile host, as a process on a node of the laboratory: `python -m tests.e2e.hostile JOB`.

It has two parts. The outsider has no key: it announces itself and others by mDNS, answers as another host, passes
connections on to a victim, repeats what was sent on them, and floods. The insiders have the key of the cluster: they
claim to have the content, and redirect, trickle, lie about the size, send wrong bytes and forge responses. They also
repeat requests that they received.

Each thing that it has done is a line of JSON on standard output: what, and a value.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# zeroconf does not state all its types.
from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mirror.relay.peers import (
    Exchange,
    RecordedRequest,
    Script,
    ScriptedPeer,
    answers,
    drips_after,
    listening,
    member,
    more_than_said,
    too_large,
    wrong_bytes,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from peili.mirror import Digest, PeerKeys
from peili.mirror.tls.peer_keys import CLUSTER_NAME

TRAP_PORT = 7777
"""The port of a program on the loopback of another host. Nothing leads there."""
_PEER_PORT, _RELAY_PORT = 5051, 5052
_SERVICE = "_peili._tcp.local."
_OTHER_ADDRESSES = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.251")
_DEAD_ADDRESS = "10.77.0.250"
_DEAD_HOSTS = 30
_FLOOD = [b""] * 100 + [b"\x16\x03\x01" + bytes(4000)] * 5
"""What each connection of the flood sends to a victim."""
_PIECE = 64 * 1024

INSIDERS: Mapping[str, Script] = {
    "redirects": answers(307, location=f"http://127.0.0.1:{TRAP_PORT}/"),
    "trickles": drips_after(0, piece=1, pause=1),
    "lies-about-the-size": too_large,
    "sends-wrong-bytes": wrong_bytes,
    "forges-responses": more_than_said,
}
"""What each insider does, by its id."""


@dataclass(frozen=True)
class Job:
    """The argument of the process, as JSON.

    Attributes:
        own: The address of the hostile host.
        victim: The address of the host that has the content.
        victim_id: Its id.
        others: The addresses of further hosts.
        key: The file of the cluster's key.
        content: The files of the content.
    """

    own: str
    victim: str
    victim_id: str
    others: Sequence[str]
    key: str
    content: Sequence[str]

    def as_argument(self) -> str:
        return json.dumps(asdict(self))


def report(what: str, value: object = None) -> None:
    sys.stdout.write(f"{json.dumps([what, value])}\n")
    sys.stdout.flush()


@dataclass
class Recording:
    """A connection that was passed on.

    Attributes:
        sent: What the client sent.
        turns: How many bytes each side sent before the other one did, beginning with the client. In TLS 1.3, the fourth
            number is that of the first response.
    """

    sent: bytearray
    turns: list[int]

    def add_sent(self, data: bytes) -> None:
        self.sent += data
        self._add(data, by_client=True)

    def add_answer(self, data: bytes) -> None:
        self._add(data, by_client=False)

    def _add(self, data: bytes, *, by_client: bool) -> None:
        if (len(self.turns) % 2 == 1) != by_client:
            self.turns.append(0)
        self.turns[-1] += len(data)


class Outsider:
    """What the host does without the key."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def answer_as_victim(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Report the first bytes of a connection, and answer it as the victim would without TLS."""
        report("was told", repr(await reader.read(4096)))
        writer.write(f"HTTP/1.1 200 OK\r\nPeili-Id: {self._job.victim_id}\r\nContent-Length: 99\r\n\r\nwrong".encode())

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on to the victim, and repeat what its client has sent up to the first response."""
        victim_reader, victim_writer = await asyncio.open_connection(self._job.victim, _PEER_PORT)
        recording = Recording(bytearray(), [])

        async def copy(
            source: asyncio.StreamReader, target: asyncio.StreamWriter, note: Callable[[bytes], None]
        ) -> None:
            with suppress(OSError):
                while data := await source.read(_PIECE):
                    before = len(recording.turns)
                    note(data)
                    target.write(data)
                    if (before, len(recording.turns)) == (3, 4):
                        await self._repeat(bytes(recording.sent), handshake=recording.turns[1])
            target.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(copy(reader, victim_writer, recording.add_sent))
            tasks.create_task(copy(victim_reader, writer, recording.add_answer))

    async def _repeat(self, sent: bytes, *, handshake: int) -> None:
        """Send the victim what was recorded. Report how much it answers, in addition to the bytes of a handshake."""
        reader, writer = await asyncio.open_connection(self._job.victim, _PEER_PORT)
        writer.write(sent)
        count = 0
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                count += len(data)
        writer.close()
        report("repeated a connection", count - handshake)

    async def announce(self, zeroconf: AsyncZeroconf, insiders: Mapping[str, int]) -> None:
        """Announce the insiders, the victim at addresses of this host, and hosts that do not exist."""
        own, victim_id = self._job.own, self._job.victim_id
        services = [
            _service("as-the-victim", victim_id, own, _PEER_PORT),
            _service("before-the-victim", victim_id, own, _RELAY_PORT),
            _service("plain", "plain", own, _PEER_PORT, "http"),
            *(_service(name, name, own, port) for name, port in insiders.items()),
            *(_service(f"at-{n}", f"at-{n}", each, TRAP_PORT) for n, each in enumerate(_OTHER_ADDRESSES)),
            *(_service(f"dead-{n}", f"dead-{n}", _DEAD_ADDRESS, 1) for n in range(_DEAD_HOSTS)),
        ]
        announcing = (zeroconf.async_register_service(each, cooperating_responders=True) for each in services)
        await asyncio.gather(*await asyncio.gather(*announcing))
        report("announced")

    async def flood(self, address: str, data: bytes) -> None:
        """Keep a connection to a peer door on which only `data` is sent."""
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(address, _PEER_PORT)
                writer.write(data)
                await reader.read()
                writer.close()
            await asyncio.sleep(0.1)


class Insiders:
    """Hosts with the key."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._keys = {name: PeerKeys(Path(job.key), name) for name in INSIDERS}
        self._content = {Digest.of(data): data for data in (Path(each).read_bytes() for each in job.content)}

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Mapping[str, int]]:
        """Serve all of them. Yields the port of each one."""
        async with AsyncExitStack() as stack:
            ports: dict[str, int] = {}
            for name, script in INSIDERS.items():
                peer = ScriptedPeer(name, b"", self._reporting(name, member(name, self._content, script)))
                tls = self._keys[name].contexts().server
                await stack.enter_async_context(listening(peer, self._job.own, tls=tls))
                ports[name] = int(peer.urls[0].rpartition(":")[2])
            yield ports

    def _reporting(self, name: str, script: Script) -> Script:
        async def answer(exchange: Exchange) -> None:
            request = exchange.request
            if request.method == "GET":
                report("was asked", name)
            if "peili-id" in request.headers:
                report("repeated a request", [request.path, await self._repeat(name, request)])
            await script(exchange)

        return answer

    async def _repeat(self, name: str, request: RecordedRequest) -> str:
        """Send the victim a request that another host sent to the insider `name`. Return the status line."""
        tls = self._keys[name].contexts().client
        reader, writer = await asyncio.open_connection(
            self._job.victim, _PEER_PORT, ssl=tls, server_hostname=CLUSTER_NAME
        )
        headers = (f"{key}: {value}" for key, value in request.headers.items())
        writer.write(
            "\r\n".join([f"{request.method} {request.path} HTTP/1.1", *headers, "\r\n"]).encode() + request.body
        )
        status = await reader.readline()
        writer.transport.abort()
        return status.decode()


def _service(name: str, identity: str, address: str, port: int, scheme: str = "https") -> AsyncServiceInfo:
    return AsyncServiceInfo(
        _SERVICE,
        f"{name}.{_SERVICE}",
        port=port,
        properties={"id": identity, "scheme": scheme},
        server=f"{name}.local.",
        parsed_addresses=[address],
    )


async def main(job: Job) -> None:
    """Do everything until the process is stopped."""
    outsider, insiders = Outsider(job), Insiders(job)
    zeroconf = AsyncZeroconf(interfaces=[job.own])
    async with insiders.listening() as ports, asyncio.TaskGroup() as tasks:
        for port, serve in ((_PEER_PORT, outsider.answer_as_victim), (_RELAY_PORT, outsider.pass_on)):
            await asyncio.start_server(serve, job.own, port)
        for address in (job.victim, *job.others):
            for data in _FLOOD:
                tasks.create_task(outsider.flood(address, data))
        await outsider.announce(zeroconf, ports)


if __name__ == "__main__":
    asyncio.run(main(Job(**json.loads(sys.argv[1]))))
