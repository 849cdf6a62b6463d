"""A host agent on Starlette, with TLS and a list of nodes of its own. Both doors of its mirror are on its one port.

Whoever connects shows a certificate of the cluster's authority: other nodes, and this node's runtime (in hosts.toml by
`ca` and `client`). Who is a node is in a file, a line ``NAME HOST:PORT`` for each, which a thread reads once a second:
it stands for whatever an agent knows its nodes by.

    python examples/starlette_agent.py node-1 --nodes FILE --tls DIR --layout DIR
"""

from __future__ import annotations

import argparse
import logging
import ssl
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from peili.mirror import Mirror, Peer, PushRouter, Store, loopback_only
from peili.stores.oci_layout import OciLayoutStore

log = logging.getLogger("agent")


class Agent:
    """The agent of node `name`. In `tls` are ca.pem, cert.pem and key.pem."""

    def __init__(self, name: str, store: Store, *, nodes: Path, tls: Path) -> None:
        self.nodes = nodes
        self.me = next(node for node in self.read_nodes() if node.id == name)
        self.router = PushRouter()
        client_tls = ssl.create_default_context(cafile=tls / "ca.pem")
        client_tls.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        self.mirror = Mirror(
            store,
            self.router,
            identity=self.me,
            auth=self.is_node,
            local_auth=loopback_only,
            client_ssl=client_tls,
        )
        doors = [Mount("/v2", self.mirror.local), Mount("/peili", self.mirror.peer)]
        self.app = Starlette(routes=[Route("/", self.status), *doors], lifespan=self.lifespan)

    def read_nodes(self) -> list[Peer]:
        lines = (line.split() for line in self.nodes.read_text().splitlines())
        return [Peer(name, (f"https://{where}/peili",)) for name, where in lines]

    def is_node(self, connection: HTTPConnection) -> bool:
        """A certificate alone is not enough: those of nodes that have left the cluster are still good."""
        hosts = {urlsplit(url).hostname for peer in (self.me, *self.router.peers()) for url in peer.urls}
        return connection.client is not None and connection.client.host in hosts

    def follow_nodes(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self.router.set(self.read_nodes())
            except (OSError, ValueError) as error:  # it may be half written, or away for a moment
                log.warning("%s: %s: the nodes stay as they were", self.nodes, error)
            stopping.wait(1)

    async def status(self, request: Request) -> JSONResponse:
        return JSONResponse({"node": self.me.id, "mirror": dict(self.mirror.readiness())})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        stopping = threading.Event()
        following = threading.Thread(target=self.follow_nodes, args=[stopping])
        following.start()
        try:
            async with self.mirror:
                yield
        finally:
            stopping.set()
            following.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    for flag in ("--nodes", "--tls", "--layout"):
        parser.add_argument(flag, type=Path, required=True)
    options = parser.parse_args()
    store = OciLayoutStore(options.layout)  # on a real node: ContainerdStore()
    agent = Agent(options.name, store, nodes=options.nodes, tls=options.tls)
    where = urlsplit(agent.me.urls[0])
    uvicorn.run(
        agent.app,
        host=str(where.hostname),
        port=where.port or 443,
        ssl_certfile=options.tls / "cert.pem",
        ssl_keyfile=options.tls / "key.pem",
        ssl_ca_certs=options.tls / "ca.pem",
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=3,  # those who keep a connection may not answer its end
    )


if __name__ == "__main__":
    main()
