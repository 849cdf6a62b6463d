"""A host that embeds mirrors, as a process: `python -m bench.embedded JOB`. Who starts it is bench/mirrors.py.

One mirror behind mutual TLS, or many empty ones, whose peer doors one uvicorn serves, each on a port of its own. (With
`serve` for each, hundreds of uvicorns would wake up ten times a second, and it would be them who are measured.)
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.support.certificates import Certificate

from peili.mirror import Mirror, PushRouter, serve
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

_KEEP_ALIVE = 30
"""As `serve` has it."""


async def behind_tls(job: dict[str, Any]) -> None:
    """One mirror that has a layout, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    certificate = Certificate(**{name: Path(file) for name, file in job["tls"].items()})
    # Whom the authority has not signed does not get as far as the door.
    mirror = Mirror(OciLayoutStore(job["layout"]), _no_peers(), insecure=True)
    local, peer = f"127.0.0.1:{job['local']}", f"127.0.0.1:{job['peer']}"
    async with mirror, serve(mirror, local=local, peer=peer, peer_ssl=certificate.server_context()):
        await stop.wait()


async def empty(count: int, told: Path) -> None:
    """`count` mirrors that have nothing, until SIGTERM. `told` is where their ports are written once they listen."""
    tls = ssl.create_default_context()  # one for all: loading the authorities takes longer than all else
    async with AsyncExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        doors: dict[int, ASGIApp] = {}
        for each in sockets:
            mirror = Mirror(MemoryStore(), _no_peers(), insecure=True, client_ssl=tls)
            doors[each.getsockname()[1]] = (await stack.enter_async_context(mirror)).peer

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await doors[scope["server"][1]](scope, receive, send)

        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=_KEEP_ALIVE, ws="none"
        )
        unfinished = told.with_suffix(".new")
        unfinished.write_text(json.dumps([*doors]))
        unfinished.replace(told)
        await uvicorn.Server(config).serve(sockets)


def _no_peers() -> PushRouter:
    router = PushRouter()
    router.set(())
    return router


def main() -> None:
    """Do the job that is the only argument."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(empty(job["empty"], Path(job["ports"])) if "empty" in job else behind_tls(job))


if __name__ == "__main__":
    main()
