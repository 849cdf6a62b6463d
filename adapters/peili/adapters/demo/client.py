"""The client of the demonstration: oras, a third-party OCI client, in its own process.

``python -m peili.adapters.demo.client HOST:PORT/REGISTRY/REPOSITORY:TAG DIRECTORY`` pulls an image into files that are
named by their digests, and prints one JSON object for each file.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peili.mirror import Digest, PeiliError


def require_oras() -> Any:
    """Return the module `oras.client`. Raises PeiliError that says how to install it."""
    try:
        return importlib.import_module("oras.client")
    except ImportError as error:
        raise PeiliError(f"the demo pulls with oras: pip install 'peili[demo]' ({error})") from error


def pull(target: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Pull `target` over plain HTTP.

    Yields:
        For each file: what it is, its digest, its size in bytes and the seconds that it took.

    Raises:
        OSError: The mirror cannot be reached, or it answers with an error.
        ValueError: An answer is not valid.
    """
    client = require_oras().OrasClient(insecure=True)
    client.session.trust_env = False  # the environment may name a proxy, which cannot reach this machine's loopback
    container = client.get_container(target)
    started = time.monotonic()
    response = client.do_request(f"http://{container.manifest_url()}", headers={"Accept": "*/*"})
    response.raise_for_status()
    digest = str(Digest.of(response.content))
    (directory / digest).write_bytes(response.content)
    yield {"what": "manifest", "digest": digest, "size": len(response.content), "seconds": time.monotonic() - started}
    manifest = response.json()
    for what, blob in [("config", manifest["config"]), *(("layer", layer) for layer in manifest["layers"])]:
        started = time.monotonic()
        client.download_blob(container, blob["digest"], str(directory / blob["digest"]))
        yield {"what": what, "digest": blob["digest"], "size": blob["size"], "seconds": time.monotonic() - started}


def _main(target: str, directory: str) -> int:
    try:
        for step in pull(target, Path(directory)):
            sys.stdout.write(json.dumps(step) + "\n")
            sys.stdout.flush()
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        sys.stdout.write(json.dumps({"what": "failure", "why": str(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
