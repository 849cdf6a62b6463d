"""What `peili hosts show` says of odd hosts folders is what containerd does with them, and `hosts apply` makes no pull
worse: judged by containerd itself, in each version that there is.

Each folder is judged by one version in every run, and by each where PEILI_CONTAINERD names it (`python -m bench
containerd`).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.judge.asked import Listeners
from tests.judge.corpus import CORPUS
from tests.judge.judge import Judge, judge
from tests.judge.verdict import disagreements
from tests.lab.releases import RELEASE_NAMES, each_release, release
from tests.support.directories import short_directory

THOROUGH = "PEILI_CONTAINERD" in os.environ
KNOWN = ("an IPv6 door", "IPv6", "a byte-order mark", "the door by hand, /v2", "backups", "only server")
"""What broke pulls once: these are judged by every version in every run."""

PAIRS = [
    pytest.param(each.values[0], name, marks=each.marks, id=f"{name} ({each.values[0]})")
    for at, each in enumerate(each_release(*RELEASE_NAMES))
    for number, name in enumerate(CORPUS)
    if THOROUGH or name in KNOWN or number % len(RELEASE_NAMES) == at
]


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Generator[Listeners]:
    listeners = Listeners(tmp_path_factory.mktemp("listeners"))
    with listeners.listening():
        yield listeners


@pytest.fixture(scope="module")
def judging(request: pytest.FixtureRequest, listeners: Listeners) -> Generator[Judge]:
    with short_directory() as place, judge(release(request.param), place / "containerd", listeners) as judging:
        yield judging


@pytest.mark.parametrize(("judging", "name"), PAIRS, indirect=["judging"])
def test_peili_and_containerd_agree(judging: Judge, name: str, tmp_path: Path) -> None:
    tags = THOROUGH or name in KNOWN or list(CORPUS).index(name) % 3 == 0
    assert disagreements(CORPUS[name], judging, tmp_path / "hosts", tags=tags) == []
