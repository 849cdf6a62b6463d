"""What the rows of one run share: a folder, the sizes, and the content that is served."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from peili.mirror import Descriptor
from peili.mirror.testing.images import Image, make_layout

T = TypeVar("T")

REGISTRY = "registry.example"
REPOSITORY = "bench/image"
KIB, MIB = 1 << 10, 1 << 20

_TAR = 3 * 512
"""What a tar of one file adds to it: a header, and the two blocks at its end."""


def blob_path(blob: Descriptor) -> str:
    """Where a mirror has a blob, as containerd asks for it."""
    return f"{registry_blob_path(blob)}?ns={REGISTRY}"


def registry_blob_path(blob: Descriptor) -> str:
    """Where a registry has it."""
    return f"/v2/{REPOSITORY}/blobs/{blob.digest}"


def manifest_path(image: Image) -> str:
    """Where a mirror has an image's manifest."""
    return f"{registry_manifest_path(image)}?ns={REGISTRY}"


def registry_manifest_path(image: Image) -> str:
    """Where a registry has it."""
    return f"/v2/{REPOSITORY}/manifests/{image.target.digest}"


@dataclass
class Setting:
    """One run. With `quick`, sizes and numbers are small: it shows that all rows run, and measures little.

    Everything below `folder` is the run's own.
    """

    folder: Path
    quick: bool = False
    _numbers: itertools.count[int] = field(default_factory=itertools.count, repr=False)

    @property
    def rounds(self) -> int:
        """How often each figure is taken."""
        return 2 if self.quick else 5

    @property
    def many_rounds(self) -> int:
        """The same where a figure moves much: with one client, who runs on which processor is luck each time."""
        return self.pick(15, 2)

    @property
    def few_rounds(self) -> int:
        """The same where one round takes long."""
        return min(3, self.rounds)

    @property
    def seconds(self) -> float:
        """How long requests are made, or bytes sent, for one sample."""
        return 0.1 if self.quick else 1.0

    def pick(self, full: T, quick: T) -> T:
        """A size or a number, or some of them."""
        return quick if self.quick else full

    def new(self, name: str) -> Path:
        """A path in the folder at which nothing is yet."""
        return self.folder / f"{next(self._numbers)}-{name}"

    @cached_property
    def large(self) -> Image:
        """An image whose only layer is the large blob: 1 GiB."""
        size = self.pick(1024 * MIB, 32 * MIB) - _TAR
        return make_layout(self.folder / "large", layers=[size], tags=[_tag(0)])

    @property
    def large_name(self) -> str:
        """Its size, for people."""
        size = self.large.layers[0].size
        return f"{size >> 30} GiB" if size >> 30 else f"{size >> 20} MiB"

    @cached_property
    def small(self) -> tuple[Image, ...]:
        """Images of 20 layers of 4 KiB each, 1,000 layers in all; in one layout."""
        return tuple(self._small_images())

    def _small_images(self) -> list[Image]:
        layers = [4 * KIB - _TAR] * 20
        numbers = range(self.pick(50, 5))
        return [make_layout(self.folder / "small", layers=layers, tags=[_tag(n)]) for n in numbers]

    def many(self, count: int) -> tuple[Image, ...]:
        """Images of 18 layers of 4 KiB: `count` blobs with their configs and manifests, in a layout of their own."""
        path = self.new(f"{count}-blobs")
        per_image = min(count, 100)
        layers = [4 * KIB - _TAR] * (per_image - 2)
        return tuple(make_layout(path, layers=layers, tags=[_tag(n)]) for n in range(count // per_image))


def _tag(number: int) -> str:
    return f"{REGISTRY}/{REPOSITORY}:v{number}"
