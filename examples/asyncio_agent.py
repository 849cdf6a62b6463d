"""A host agent without a web server: `serve()` runs the mirror's doors on sockets that the agent made.

python examples/asyncio_agent.py --layout DIR [URL_OF_ANOTHER_PEER_DOOR]...
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from collections.abc import Iterable
from pathlib import Path

from peili.mirror import Mirror, Peer, PushRouter, Store, serve
from peili.stores.oci_layout import OciLayoutStore


class Agent:
    """Manages this machine until `stopping` is set.

    Args:
        store: the images of this machine.
        nodes: the URLs of the peer doors of the other nodes.
    """

    def __init__(self, store: Store, nodes: Iterable[str] = ()) -> None:
        self.router = PushRouter()
        self.router.set(Peer(url, (url,)) for url in nodes)
        self.mirror = Mirror(store, self.router)
        self.stopping = asyncio.Event()

    async def run(self, local: socket.socket, peer: socket.socket) -> None:
        async with self.mirror, serve(self.mirror, local=local, peer=peer) as doors:
            print("local door", *doors.local_addresses, "peer door", *doors.peer_addresses, flush=True)
            await self.stopping.wait()  # an agent does its work here


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nodes", nargs="*")
    parser.add_argument("--layout", type=Path, required=True)
    options = parser.parse_args()
    agent = Agent(OciLayoutStore(options.layout), options.nodes)  # on a real node: ContainerdStore()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.stopping.set)
    with socket.create_server(("127.0.0.1", 0)) as local, socket.create_server(("127.0.0.1", 0)) as peer:
        await agent.run(local, peer)


if __name__ == "__main__":
    asyncio.run(main())
