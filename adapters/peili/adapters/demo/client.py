"""The runtime of the demonstration: oras, an OCI client that is not ours, in a process of its own.

Called as a module with ``HOST:PORT/REGISTRY/REPOSITORY:TAG DIRECTORY`` it pulls an image into files named by their
digests, and prints one JSON object for each of them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peili.adapters.demo.extra import require_oras
from peili.mirror import Digest


def pull(target: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Pull `target` over plain HTTP; what was done, step by step. Raises OSError, ValueError."""
    client = require_oras().OrasClient(insecure=True)
    client.session.trust_env = False  # a proxy from the environment does not lead to this machine's loopback
    container = client.get_container(target)
    began = time.monotonic()
    response = client.do_request(f"http://{container.manifest_url()}", headers={"Accept": "*/*"})
    response.raise_for_status()
    digest = str(Digest.of(response.content))
    (directory / digest).write_bytes(response.content)
    yield {"what": "manifest", "digest": digest, "size": len(response.content), "seconds": time.monotonic() - began}
    manifest = response.json()
    for what, blob in [("config", manifest["config"]), *(("layer", layer) for layer in manifest["layers"])]:
        began = time.monotonic()
        client.download_blob(container, blob["digest"], str(directory / blob["digest"]))
        yield {"what": what, "digest": blob["digest"], "size": blob["size"], "seconds": time.monotonic() - began}


def _main(target: str, directory: str) -> int:
    try:
        for step in pull(target, Path(directory)):
            sys.stdout.write(json.dumps(step) + "\n")
            sys.stdout.flush()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        sys.stdout.write(json.dumps({"what": "failure", "why": str(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
