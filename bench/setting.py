"""What all rows of a run share: the folder, the sizes, and the content that is served."""

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

TAR = 3 * 512
"""The bytes that a tar archive adds to its only file: a header, and two blocks at the end."""


def blob_path(blob: Descriptor) -> str:
    """Return the path of a blob at a mirror, as containerd requests it."""
    return f"{registry_blob_path(blob)}?ns={REGISTRY}"


def registry_blob_path(blob: Descriptor) -> str:
    """Return the path of a blob at a registry."""
    return f"/v2/{REPOSITORY}/blobs/{blob.digest}"


def manifest_path(image: Image) -> str:
    """Return the path of an image's manifest at a mirror."""
    return f"{registry_manifest_path(image)}?ns={REGISTRY}"


def registry_manifest_path(image: Image) -> str:
    """Return the path of an image's manifest at a registry."""
    return f"/v2/{REPOSITORY}/manifests/{image.target.digest}"


@dataclass
class Setting:
    """The settings of one run.

    Attributes:
        folder: The folder of all files of the run.
        quick: Whether sizes and numbers are small. Such a run only shows that the rows work.
        only: A part of the names of the scenes or faults to measure, in a row that has some; empty for all.
    """

    folder: Path
    quick: bool = False
    only: str = ""
    _numbers: itertools.count[int] = field(default_factory=itertools.count, repr=False)

    @property
    def rounds(self) -> int:
        """The number of rounds of most rows."""
        return self.pick(5, 1)

    @property
    def many_rounds(self) -> int:
        """The number of rounds of a row that varies: with one client, the scheduler's choice of processors matters."""
        return self.pick(15, 1)

    @property
    def few_rounds(self) -> int:
        """The number of rounds of a row whose rounds take long."""
        return min(3, self.rounds)

    @property
    def seconds(self) -> float:
        """The duration of one sample in seconds."""
        return 0.1 if self.quick else 1.0

    def pick(self, full: T, quick: T) -> T:
        """Return `quick` in a quick run, else `full`."""
        return quick if self.quick else full

    def new(self, name: str) -> Path:
        """Return the path of a new file or folder in the run's folder."""
        return self.folder / f"{next(self._numbers)}-{name}"

    @cached_property
    def large(self) -> Image:
        """An image with one layer of 1 GiB."""
        size = self.pick(1024 * MIB, 32 * MIB) - TAR
        return make_layout(self.folder / "large", layers=[size], tags=[_tag(0)])

    @property
    def large_name(self) -> str:
        """The size of the large layer, for people."""
        size = self.large.layers[0].size
        return f"{size >> 30} GiB" if size >> 30 else f"{size >> 20} MiB"

    @cached_property
    def small(self) -> tuple[Image, ...]:
        """Images with 20 layers of 4 KiB each, 1,000 layers in total, in one layout."""
        return tuple(self._small_images())

    def _small_images(self) -> list[Image]:
        layers = [4 * KIB - TAR] * 20
        numbers = range(self.pick(50, 5))
        return [make_layout(self.folder / "small", layers=layers, tags=[_tag(n)]) for n in numbers]

    def many(self, count: int) -> tuple[Image, ...]:
        """Create images in a new layout with `count` blobs in total: layers of 4 KiB, configs and manifests."""
        path = self.new(f"{count}-blobs")
        per_image = min(count, 100)
        layers = [4 * KIB - TAR] * (per_image - 2)
        return tuple(make_layout(path, layers=layers, tags=[_tag(n)]) for n in range(count // per_image))


def _tag(number: int) -> str:
    return f"{REGISTRY}/{REPOSITORY}:v{number}"
