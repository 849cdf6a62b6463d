"""A host agent that embeds mirrors, as a process: `python -m bench.embedded JOB`. bench/mirrors.py starts it.

It runs one mirror with mutual TLS, or many empty mirrors, which may form a cluster. One uvicorn serves the peer doors
of the empty mirrors, each on its own port. With one `serve` for each, hundreds of uvicorns would wake up ten times per
second, and that would be measured.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.support.certificates import Certificate

from peili.mirror import Limits, Mirror, Peer, PushRouter, serve
from peili.mirror.membership.directory.homes import choose_homes
from peili.mirror.peer_api.directory import Holdings
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

_KEEP_ALIVE = 30
"""Seconds, the same as in `peili.mirror.serve`."""
QUIET_HEARTBEAT = 3600.0
"""Seconds between the messages to a home: so long that none is sent while something is measured."""


async def run_with_tls(job: dict[str, Any]) -> None:
    """Run one mirror of an OCI image layout until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    certificate = Certificate(**{name: Path(file) for name, file in job["tls"].items()})
    # The door is open, because TLS already refuses clients without a certificate of the authority.
    mirror = Mirror(OciLayoutStore(job["layout"]), _no_peers(), insecure=True)
    local, peer = f"127.0.0.1:{job['local']}", f"127.0.0.1:{job['peer']}"
    async with mirror, serve(mirror, local=local, peer=peer, peer_ssl=certificate.server_context()):
        await stop.wait()


async def run_empty(count: int, ports_file: Path, others: Mapping[str, str] | None) -> None:
    """Run `count` mirrors with empty stores until SIGTERM. Their ports are written to `ports_file` when they listen.

    If `others` is given, they and the hosts with these ids and URLs are one cluster. The ids of the mirrors are those
    of `peer_id`. In a large cluster, only the homes know the members, and they know that the mirrors have nothing: with
    so many mirrors on one machine, the messages of all would take minutes. In a small one, all members are homes, and
    the mirrors tell this to each of them.
    """
    tls = ssl.create_default_context()  # shared: loading the authorities takes longer than everything else
    async with AsyncExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        doors: dict[int, ASGIApp] = {}
        ids = [peer_id(number) for number in range(count)]
        homes = choose_homes([*ids, *others]) if others is not None else frozenset[str]()
        members = [Peer(name, (url,)) for name, url in (others or {}).items()]
        members += [
            Peer(name, (f"http://127.0.0.1:{each.getsockname()[1]}",)) for name, each in zip(ids, sockets, strict=True)
        ]
        limits = Limits(directory_heartbeat=QUIET_HEARTBEAT)
        is_small = len(homes) == len(members)
        for this, each in zip(members[-count:], sockets, strict=True):
            router = PushRouter()
            router.set(members if this.id in homes else ())
            identity = this if is_small else this.id  # without a URL, it reports nothing
            mirror = Mirror(MemoryStore(), router, insecure=True, client_ssl=tls, identity=identity, limits=limits)
            doors[each.getsockname()[1]] = (await stack.enter_async_context(mirror)).peer
            if this.id in homes and not is_small:
                _tell_home(router, ids, homes)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await doors[scope["server"][1]](scope, receive, send)

        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=_KEEP_ALIVE, ws="none"
        )
        unfinished = ports_file.with_suffix(".new")
        unfinished.write_text(json.dumps([*doors]))
        unfinished.replace(ports_file)
        await uvicorn.Server(config).serve(sockets)


def peer_id(number: int) -> str:
    """Return the id of an empty mirror."""
    return f"peer-{number}"


def _tell_home(router: PushRouter, ids: Sequence[str], homes: frozenset[str]) -> None:
    """Tell a home what the empty mirrors would tell it."""
    membership = router._peili_membership  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - not an interface
    if membership is not None:
        for each in ids:
            message = Holdings("bench", 0, QUIET_HEARTBEAT, tuple(homes), is_synced=True)
            membership.directory.home.records.apply(each, message)


def _no_peers() -> PushRouter:
    router = PushRouter()
    router.set(())
    return router


def main() -> None:
    """Run the job that is the only argument, as JSON."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "empty" in job:
        asyncio.run(run_empty(job["empty"], Path(job["ports"]), job["others"]))
    else:
        asyncio.run(run_with_tls(job))


if __name__ == "__main__":
    main()
