"""What several end-to-end tests ask of a host."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from tests.lab.containerd import Containerd
from tests.lab.lab import Host

from peili.mirror.testing.images import Image

KIB = 1 << 10
MIB = 1 << 20


def expected(image: Image) -> set[str]:
    """The digests that a pull for this machine's platform brings."""
    return {image.target.digest, *(blob.digest for blob in image.manifests[0].blobs)}


def assert_has(host: Host, image: Image) -> None:
    """containerd on `host` has the whole of `image` for this platform, byte for byte."""
    assert not expected(image) - host.containerd.digests()
    for digest in expected(image):
        assert hashlib.sha256(host.containerd.read(digest)).hexdigest() == digest.removeprefix("sha256:")


def assert_nothing_wrong(containerd: Containerd) -> None:
    """Every file that containerd has committed is what its name says. Some go meanwhile: a failed pull is tidied up."""
    for blob in containerd.blob_path("sha256").iterdir():
        with suppress(FileNotFoundError):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def flip_byte(blob: Path, at: int) -> None:
    """Change the byte of `blob` at the offset `at`; the size stays."""
    with blob.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
