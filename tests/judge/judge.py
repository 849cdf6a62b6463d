"""A real containerd as the judge of what a hosts folder means: its ctr pulls, and the listeners say who was asked."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containerd_releases import Release
from tests.judge.asked import Asked, Listeners
from tests.lab.containerd import Containerd
from tests.lab.network import LoopbackNetwork
from tests.lab.processes import DEADLINE, ENVIRONMENT, die_with_parent, run

DIGEST = "sha256:" + "ab" * 32


@dataclass(frozen=True)
class Judge:
    """A running containerd of that release. Its pulls find nothing: that is how each host is asked."""

    release: Release
    version: str
    socket: Path
    listeners: Listeners

    def asked(self, folder: Path, registry: str, *, tags: bool) -> Answers:
        """Whom it asks for a digest of `registry`, and with `tags` for a tag too, where `folder` has its hosts."""
        content = self._pull(folder, f"{registry}/c@{DIGEST}")
        return Answers(content, self._pull(folder, f"{registry}/c:v1") if tags else None)

    def _pull(self, folder: Path, reference: str) -> list[Asked]:
        ctr = [
            self.release.program("ctr"),
            "--address",
            str(self.socket),
            "content",
            "fetch",
            "--hosts-dir",
            str(folder),
        ]
        self.listeners.heard()
        done = subprocess.run(
            die_with_parent([*ctr, reference]),
            env={**ENVIRONMENT, **self.listeners.environment()},
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode != 0, f"nobody has {reference}, and yet it was pulled"
        return [each for each in self.listeners.heard() if "/manifests/" in each.path]


@dataclass(frozen=True, slots=True)
class Answers:
    """Whom containerd asked for content, and what a tag means, if it was to."""

    content: list[Asked]
    tag: list[Asked] | None


@contextmanager
def judge(release: Release, directory: Path, listeners: Listeners) -> Generator[Judge]:
    """containerd of `release`, kept in `directory`, which is made."""
    with LoopbackNetwork() as network:
        containerd = Containerd(network.add_node("judge"), directory, unpack=False, release=release)
        containerd.start()
        try:
            yield Judge(release, _version(release), containerd.socket, listeners)
        finally:
            containerd.stop()


def _version(release: Release) -> str:
    words = run([release.program("containerd"), "--version"]).decode().split()
    return words[2]
