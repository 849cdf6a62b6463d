"""A host agent with its own server, as a process: its local door is below a path, and demands a client certificate.

`python -m tests.e2e.mounted_agent JOB`. The door has no content; it relays that of one peer.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from peili.mirror import Limits, Mirror, PeerCertificates, PeerKeys, PeerTLS
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

PATH = "/images/v2"
"""Where the door is mounted."""


def peer_tls(section: Mapping[str, Any]) -> PeerTLS | None:
    """Return the TLS of a section `[peer]`, as `tests.lab.access.Access` makes it."""
    if "tls" in section:
        ca, cert, key = (Path(section["tls"][name]) for name in ("ca", "cert", "key"))
        return PeerCertificates(ca, cert, key)
    return PeerKeys(Path(section["shared_key_file"]), "agent") if "shared_key_file" in section else None


def main(job: Mapping[str, Any]) -> None:
    """Serve until SIGTERM.

    Args:
        job: ``host`` and ``port`` to listen on, ``tls`` (the files ca, cert and key), ``peer`` (the URL of one),
            ``access`` (the section `[peer]` with which that one admits this host), and ``limits``.
    """
    mirror = Mirror(
        MemoryStore(),
        StaticRouter.from_config({"peers": [job["peer"]]}),
        peer_tls=peer_tls(job["access"]),
        limits=Limits(**job["limits"]),
    )
    app = Starlette(routes=[Mount(PATH, mirror.local)], lifespan=mirror.lifespan)
    tls = job["tls"]
    uvicorn.run(
        app,
        host=job["host"],
        port=job["port"],
        ssl_certfile=tls["cert"],
        ssl_keyfile=tls["key"],
        ssl_ca_certs=tls["ca"],
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
