"""Checks and helpers that several end-to-end tests use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.containerd import Containerd
from tests.lab.lab import Host
from tests.lab.processes import wait_for
from tests.lab.pulls import Pulls
from tests.lab.upstream import Published

from peili.mirror.testing.images import Image

KIB = 1 << 10
MIB = 1 << 20


def platform_digests(image: Image) -> set[str]:
    """Return the digests of the index, if any, and of all blobs that a pull for this machine's platform fetches."""
    return {image.target.digest, *(blob.digest for blob in image.manifests[0].blobs)}


def assert_has(host: Host, image: Image) -> None:
    """Check that containerd on `host` has all bytes of `image` for this machine's platform."""
    assert not platform_digests(image) - host.containerd.digests()
    for digest in platform_digests(image):
        content = host.containerd.blob_path(digest).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest.removeprefix("sha256:")


def assert_all_get_it(pulls: Pulls, hosts: Sequence[Host], *, most_copies: float) -> None:
    """Wait for `pulls`, and check that each host has the image, and how many copies upstream has sent for that."""
    pulls.wait()
    assert not pulls.failed
    for host in hosts:
        assert_has(host, pulls.image.image)
    assert pulls.copies() <= most_copies


def wait_found(host: Host, published: Published) -> None:
    """Wait until `host` finds all that a pull for this machine's platform fetches, here or at peers.

    The homes of each key learn that another host has it some moments after the pull there has ended.
    """
    for digest in platform_digests(published.image):
        path = published.blob_url(digest)
        wait_for(lambda path=path: host.can_find(path), f"{host.name} finds {digest}")  # type: ignore[misc]  # bound early


def assert_no_wrong_blob(containerd: Containerd) -> None:
    """Check that each blob that containerd has committed has the digest that is its name."""
    for blob in containerd.blob_path("sha256").iterdir():
        with suppress(FileNotFoundError):  # containerd removes the content of a failed pull
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def flip_byte(blob: Path, at: int) -> None:
    """Change the byte of `blob` at the offset `at`."""
    with blob.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
