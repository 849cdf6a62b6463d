"""Checks and helpers that several end-to-end tests use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab.containerd import Containerd
from tests.lab.lab import Host, Lab
from tests.lab.processes import wait_for
from tests.lab.pulls import Pulls
from tests.lab.upstream import Published

from peili.mirror.testing.images import Image

KIB = 1 << 10
MIB = 1 << 20
_ROUNDS = 5
"""How often hosts pull new images until upstream has sent few copies of one."""


def platform_digests(image: Image) -> set[str]:
    """Return the digests of the index, if any, and of all blobs that a pull for this machine's platform fetches."""
    return {image.target.digest, *(blob.digest for blob in image.manifests[0].blobs)}


def assert_has(host: Host, image: Image) -> None:
    """Check that containerd on `host` has all bytes of `image` for this machine's platform."""
    assert not platform_digests(image) - host.containerd.digests()
    for digest in platform_digests(image):
        content = host.containerd.blob_path(digest).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest.removeprefix("sha256:")


def assert_shared(lab: Lab, layers: Sequence[int], *, most_copies: float, interval: float = 0) -> None:
    """Let all hosts pull a new image, and check that each of them gets it, and how many copies upstream sends for that.

    See `repeat_until_shared`.
    """

    def pull_once() -> float:
        pulls = Pulls(lab.publish("library/shared", layers), [lab.upstream])
        pulls.start([*lab.hosts.values()], interval=interval)
        pulls.wait()
        assert not pulls.failed
        for host in lab.hosts.values():
            assert_has(host, pulls.image.image)
        return pulls.copies()

    repeat_until_shared(pull_once, most_copies=most_copies)


def repeat_until_shared(pull_once: Callable[[], float], *, most_copies: float) -> None:
    """Call `pull_once`, which returns how many copies upstream has sent, until they are few.

    If a host stands still for too long, others go upstream, as they should. On a busy machine, this may happen now and
    then, so the test fails only if there are too many copies several times in a row.
    """
    copies: list[float] = []
    while not copies or copies[-1] > most_copies:
        assert len(copies) < _ROUNDS, f"upstream has sent {copies} copies, but {most_copies} are enough"
        copies.append(pull_once())


def wait_found(host: Host, published: Published) -> None:
    """Wait until `host` finds all that a pull for this machine's platform fetches, here or at peers.

    The homes of each key learn that another host has it some moments after the pull there has ended.
    """
    for digest in platform_digests(published.image):
        path = published.blob_url(digest)
        wait_for(lambda path=path: host.can_find(path), f"{host.name} finds {digest}")  # type: ignore[misc]  # bound early


def wait_sent(host: Host, published: Published) -> None:
    """Wait until the local door of `host` sends all of the image. A holder that it knows may be slow, or frozen."""
    for digest in platform_digests(published.image):
        path = published.blob_url(digest)
        wait_for(lambda path=path: host.peili.request("GET", path).status == 200, f"{host.name} sends {digest}")  # type: ignore[misc]  # bound early


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
