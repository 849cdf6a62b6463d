"""A host agent on FastAPI. The mirror is mounted under a prefix and uses the agent's logger and metrics registry.

A program on this host tells the agent which nodes exist, by the agent's API; requests from other hosts are refused.

    python examples/fastapi_agent.py node-1 http://127.0.0.1:8000 --layout DIR

In hosts.toml: ``[host."http://127.0.0.1:8000/images/v2"]`` with ``override_path = true``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.requests import HTTPConnection
from prometheus_client import CollectorRegistry, generate_latest

from peili.mirror import Mirror, Peer, PushRouter, Store, loopback_only
from peili.stores.oci_layout import OciLayoutStore


def build(name: str, url: str, store: Store) -> FastAPI:
    """Return the app of the node `name`, which the other nodes reach at `url`."""
    router = PushRouter()
    addresses = _addresses(url)

    def is_node(connection: HTTPConnection) -> bool:
        return connection.client is not None and connection.client.host in addresses

    me = Peer(name, (f"{url}/images/peer",))
    log = logging.getLogger("agent.images")
    mirror = Mirror(store, router, identity=me, auth=is_node, log=log)
    registry = CollectorRegistry()
    registry.register(mirror)
    app = FastAPI(lifespan=mirror.lifespan)
    app.mount("/images/v2", mirror.local)
    app.mount("/images/peer", mirror.peer)

    def from_this_host(connection: HTTPConnection) -> None:
        if not loopback_only(connection):
            raise HTTPException(403)

    @app.put("/nodes", dependencies=[Depends(from_this_host)])
    def set_nodes(urls: dict[str, str]) -> None:  # FastAPI calls this in a thread, because it is no coroutine
        nonlocal addresses
        addresses = _addresses(url, *urls.values())  # replaced, so that nodes that left are refused
        router.set(Peer(node, (f"{each}/images/peer",)) for node, each in urls.items())

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app


def _addresses(*urls: str) -> set[str | None]:
    return {urlsplit(each).hostname for each in urls}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("url")
    parser.add_argument("--layout", type=Path, required=True)
    options = parser.parse_args()
    url: str = options.url
    app = build(options.name, url, OciLayoutStore(options.layout))  # on a real node: ContainerdStore()
    # Other nodes use the URL. This host's runtime, and the program that sets the nodes, use 127.0.0.1.
    uvicorn.run(app, host="0.0.0.0", port=urlsplit(url).port or 80)  # noqa: S104


if __name__ == "__main__":
    main()
