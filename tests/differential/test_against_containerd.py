"""`peili hosts` is compared with a real containerd for many unusual hosts directories.

`hosts show` reports what containerd does, and `hosts apply` makes no pull worse. In a normal run, each directory is
tested with one containerd release. With PEILI_CONTAINERD, all of them are tested with that release; `python -m bench
containerd` does this for each release.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.differential.comparison import disagreements
from tests.differential.corpus import CORPUS
from tests.differential.oracle import ContainerdOracle, run_oracle
from tests.differential.recording_servers import RecordingServers
from tests.lab.releases import RELEASE_NAMES, each_release, release
from tests.support.directories import short_directory

THOROUGH = "PEILI_CONTAINERD" in os.environ
KNOWN = ("an IPv6 door", "IPv6", "a byte-order mark", "the door by hand, /v2", "backups", "only server")
"""Cases that once broke pulls. They are tested with every release in every run."""

PAIRS = [
    pytest.param(name, each.values[0], marks=each.marks, id=f"{name} ({each.values[0]})")
    for at, each in enumerate(each_release(*RELEASE_NAMES))
    for number, name in enumerate(CORPUS)
    if THOROUGH or name in KNOWN or number % len(RELEASE_NAMES) == at
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[RecordingServers]:
    servers = RecordingServers(tmp_path_factory.mktemp("servers"))
    with servers.listening():
        yield servers


@pytest.fixture(scope="module")
def oracle(request: pytest.FixtureRequest, servers: RecordingServers) -> Generator[ContainerdOracle]:
    with (
        short_directory() as directory,
        run_oracle(release(request.param), directory / "containerd", servers) as oracle,
    ):
        yield oracle


# Without the scope, pytest would start containerd for each case.
@pytest.mark.parametrize(("name", "oracle"), PAIRS, indirect=["oracle"], scope="module")
def test_peili_and_containerd_agree(oracle: ContainerdOracle, name: str, tmp_path: Path) -> None:
    tags = THOROUGH or name in KNOWN or list(CORPUS).index(name) % 3 == 0
    assert disagreements(CORPUS[name], oracle, tmp_path / "hosts", tags=tags) == []
