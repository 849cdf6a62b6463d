"""Checks what a client got against the digests, without any of the code that brought it there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def wrong(directory: Path, manifest: str) -> list[str]:
    """The digests, of the manifest and of all that it names, whose file is missing or has other content."""
    if not _is_right(directory, manifest):
        return [manifest]
    return [digest for digest in named(directory, manifest) if not _is_right(directory, digest)]


def named(directory: Path, manifest: str) -> list[str]:
    """The digests that the manifest in `directory` names."""
    document = json.loads((directory / manifest).read_bytes())
    return [blob["digest"] for blob in (document["config"], *document["layers"])]


def _is_right(directory: Path, digest: str) -> bool:
    algorithm, _, encoded = digest.partition(":")
    try:
        with (directory / digest).open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == encoded
    except FileNotFoundError:
        return False
