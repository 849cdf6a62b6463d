"""A host agent on Starlette with its own TLS and its own list of nodes. Both doors of the mirror are on its only port.

Every client shows a certificate of the cluster's authority: the other nodes, and this node's runtime (`ca` and `client`
in hosts.toml). A file lists the nodes, one ``NAME HOST:PORT`` a line, and a thread reads it every second. A real agent
has another source of nodes.

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

from peili.mirror import Mirror, Peer, PushRouter, Store
from peili.stores.oci_layout import OciLayoutStore

log = logging.getLogger("agent")


class Agent:
    """The agent of a node.

    Args:
        name: this node's name in the file `nodes`.
        store: the images of this node.
        nodes: the file that lists all nodes.
        tls: the folder with ca.pem, cert.pem and key.pem.
    """

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
            client_ssl=client_tls,
        )
        doors = [Mount("/v2", self.mirror.local), Mount("/peili", self.mirror.peer)]
        self.app = Starlette(routes=[Route("/", self.status), *doors], lifespan=self.lifespan)

    def read_nodes(self) -> list[Peer]:
        lines = (line.split() for line in self.nodes.read_text().splitlines())
        return [Peer(name, (f"https://{address}/peili",)) for name, address in lines]

    def is_node(self, connection: HTTPConnection) -> bool:
        """Whether the client is a node. A certificate is not enough: it stays valid after its node left the cluster."""
        hosts = {urlsplit(url).hostname for peer in (self.me, *self.router.peers()) for url in peer.urls}
        return connection.client is not None and connection.client.host in hosts

    def follow_nodes(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self.router.set(self.read_nodes())
            except (OSError, ValueError) as error:  # it may be missing or incomplete for a moment
                log.warning("%s: %s: keeping the previous nodes", self.nodes, error)
            stopping.wait(1)

    async def status(self, request: Request) -> JSONResponse:
        return JSONResponse({"node": self.me.id, "mirror": dict(self.mirror.readiness())})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        stopping = threading.Event()
        thread = threading.Thread(target=self.follow_nodes, args=[stopping])
        thread.start()
        try:
            async with self.mirror:
                yield
        finally:
            stopping.set()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    for flag in ("--nodes", "--tls", "--layout"):
        parser.add_argument(flag, type=Path, required=True)
    options = parser.parse_args()
    store = OciLayoutStore(options.layout)  # on a real node: ContainerdStore()
    agent = Agent(options.name, store, nodes=options.nodes, tls=options.tls)
    url = urlsplit(agent.me.urls[0])
    uvicorn.run(
        agent.app,
        host=str(url.hostname),
        port=url.port or 443,
        ssl_certfile=options.tls / "cert.pem",
        ssl_keyfile=options.tls / "key.pem",
        ssl_ca_certs=options.tls / "ca.pem",
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=3,  # a client with an idle connection may not close it
    )


if __name__ == "__main__":
    main()
