"""Measures how long many hosts take to get an image that only a registry has, and what the registry sends for that.

The reference is the same laboratory without peili. Times are multiples of F/B: of what the slowest link needs for the
image. For N hosts that all fetch from upstream, F/B times N is the least that is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tests.containerd_releases import Release
from tests.lab.access import AccessKind
from tests.lab.releases import release

from bench import budgets
from bench.cold_start import ColdStart, Figures, Links, cold_start
from bench.measure import COPIES, PERCENT, TIMES_LINK, Budget, Row, Unit
from bench.setting import MIB, Setting

GROUP = "coldstart"
_AGAINST = "without peili"
_LATER = "forky"
"""The containerd release of the scenes in which the daemon fetches the layers: 2.1.9."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image to pull: the number of its layers, and the MiB of each."""

    layers: int
    size: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.size} MiB"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is measured in one laboratory.

    Attributes:
        hosts: The number of hosts.
        links: The rates of the links.
        images: The images, one after the other.
        interval: The seconds between the starts of two pulls.
        last: The budget for the time until the last host has every blob.
        release: The name of the containerd release, if it is not the installed one.
        access: How the peer doors are closed, if they are.
        compare: Of how many of the images to measure a pull without peili, too. That takes hosts x F/B.
    """

    hosts: int
    links: Links
    images: Sequence[Image]
    interval: float = 0
    last: Budget | None = None
    release: str | None = None
    access: AccessKind | None = None
    compare: int = 1

    def name(self, image: Image) -> str:
        """Return what is measured, for people."""
        links = f"{self.links.hosts} Mbit/s"
        if self.links.upstream != self.links.hosts:
            links += f", upstream {self.links.upstream}"
        start = f", one every {self.interval:g} s" if self.interval else ""
        containerd = f", containerd {self.release}" if self.release else ""
        access = f", mutual TLS ({self.access})" if self.access else ""
        return f"{self.hosts} hosts, {links}, {image}{start}{containerd}{access}"


_ONE, _FOUR, _MANY = Image(1, 64), Image(4, 16), Image(40, 1)
_EIGHT, _SIXTEEN, _SLOW_UPSTREAM = Links(40, 40), Links(20, 20), Links(400, 20)
_SCENES = (
    Scene(8, _EIGHT, [_ONE, _FOUR], last=budgets.COLD_START_LAST, compare=2),
    Scene(8, _EIGHT, [_MANY]),
    Scene(8, _EIGHT, [_ONE, _FOUR], interval=2),
    Scene(8, _EIGHT, [_ONE, _FOUR], last=budgets.COLD_START_LAST, release=_LATER, compare=0),
    Scene(8, _EIGHT, [_ONE], last=budgets.COLD_START_LAST, access="key", compare=0),
    Scene(16, _SIXTEEN, [_ONE, _FOUR], last=budgets.COLD_START_LAST, compare=0),
    Scene(8, _SLOW_UPSTREAM, [_ONE], last=budgets.COLD_START_SLOW_UPSTREAM),
)
_QUICK = (Scene(2, Links(400, 400), [Image(2, 1)]),)

_LAST = "the last host has it"
_COLUMNS: Sequence[tuple[str, Unit, Callable[[Figures], float]]] = (
    ("copies from upstream", COPIES, lambda each: each.copies),
    ("the median host has it", TIMES_LINK, lambda each: each.median),
    (_LAST, TIMES_LINK, lambda each: each.last),
    ("the last pull returns", TIMES_LINK, lambda each: each.returned),
    ("processors used", PERCENT, lambda each: 100 * each.busy),
    ("of these by other programs", PERCENT, lambda each: 100 * each.others),
)


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of each scene. Raises RuntimeError if the machine can't limit links."""
    for scene in chosen_scenes(setting):
        with cold_start(setting.folder, scene.hosts, scene.links, release=_release(scene), access=scene.access) as lab:
            yield from _scene_rows(setting, scene, lab)


def chosen_scenes(setting: Setting) -> Sequence[Scene]:
    """Return what is measured: the scenes that have an image left. Raises RuntimeError if none has."""
    scenes = [
        replace(scene, images=[image for image in scene.images if setting.only in scene.name(image)])
        for scene in setting.pick(_SCENES, _QUICK)
    ]
    chosen = [scene for scene in scenes if scene.images]
    if not chosen:
        raise RuntimeError(f"no scene has {setting.only!r} in its name")
    return chosen


def _scene_rows(setting: Setting, scene: Scene, lab: ColdStart) -> Iterator[Row]:
    """Measure without peili first, and once: that takes long, and the links decide it."""
    lab.without_peili()
    theirs = [_measure(lab, scene, image) for image in scene.images[: scene.compare]]
    lab.with_peili()
    for number, image in enumerate(scene.images):
        ours = [_measure(lab, scene, image) for _ in range(setting.pick(3, 1))]
        reference = theirs[number : number + 1]
        for what, unit, figure in _COLUMNS:
            yield Row(
                GROUP,
                f"{scene.name(image)}: {what}",
                unit,
                tuple(map(figure, ours)),
                _AGAINST if reference else "",
                tuple(map(figure, reference)),
                _budget(scene, unit, what),
            )


def _measure(lab: ColdStart, scene: Scene, image: Image) -> Figures:
    return lab.measure(lab.prepare([image.size * MIB] * image.layers), interval=scene.interval)


def _budget(scene: Scene, unit: Unit, what: str) -> Budget | None:
    if unit is COPIES:
        return budgets.COLD_START_COPIES
    return scene.last if what == _LAST else None


def _release(scene: Scene) -> Release | None:
    if scene.release is None:
        return None
    try:
        return release(scene.release)
    except LookupError as error:
        raise RuntimeError(f"left out: {error}") from error
