"""A host agent that embeds mirrors, as a process: `python -m bench.embedded JOB`. bench/mirrors.py starts it.

It runs one mirror with mutual TLS, or many empty mirrors. One uvicorn serves the peer doors of the empty mirrors, each
on its own port. With one `serve` for each, hundreds of uvicorns would wake up ten times per second, and that would be
measured.
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
"""Seconds, the same as in `peili.mirror.serve`."""


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


async def run_empty(count: int, ports_file: Path) -> None:
    """Run `count` mirrors with empty stores until SIGTERM. Their ports are written to `ports_file` when they listen."""
    tls = ssl.create_default_context()  # shared: loading the authorities takes longer than everything else
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
        unfinished = ports_file.with_suffix(".new")
        unfinished.write_text(json.dumps([*doors]))
        unfinished.replace(ports_file)
        await uvicorn.Server(config).serve(sockets)


def _no_peers() -> PushRouter:
    router = PushRouter()
    router.set(())
    return router


def main() -> None:
    """Run the job that is the only argument, as JSON."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run_empty(job["empty"], Path(job["ports"])) if "empty" in job else run_with_tls(job))


if __name__ == "__main__":
    main()
