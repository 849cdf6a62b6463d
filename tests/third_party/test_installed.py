"""A third-party distribution has a router and a store, and a configuration file chooses them by name."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.processes import Process, wait_for
from tests.third_party.conftest import HARBOUR

from peili.mirror import ROUTERS
from peili.mirror.plugins.loading import BUILT_IN
from peili.mirror.testing import Image, make_layout, pack_tar

SERVE = ("-m", "peili.adapters.standalone", "serve", "--config")
DOORS = '[local]\nlisten = "127.0.0.1:0"\n[peer]\nlisten = "127.0.0.1:0"\n'


def peili(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a machine with the third-party distribution."""
    command = [sys.executable, "-m", "peili.adapters.standalone", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


class Serving:
    """`peili serve` with a configuration file, on a machine with the third-party distribution."""

    def __init__(self, site: Path, directory: Path, configuration: str) -> None:
        directory.mkdir()
        file = directory / "peili.toml"
        file.write_text(DOORS + configuration)
        self.process = Process(
            ["env", f"PYTHONPATH={site}", sys.executable, *SERVE, str(file)], directory / "peili.log"
        )

    def door(self, name: str) -> str:
        """Return the address of a door. Waits until it listens."""

        def addresses() -> list[str]:
            assert self.process.is_running, self.process.output()
            return re.findall(rf"{name} door (127\.0\.0\.1:\d+)", self.process.output())

        return wait_for(addresses, f"the {name} door is up")[0]

    def ask(self, door: str, path: str) -> tuple[int, bytes]:
        """Return the status and the body of the response of a door."""
        connection = http.client.HTTPConnection(self.door(door), timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture
def neighbour(site: Path, tmp_path: Path) -> Iterator[tuple[Serving, Image]]:
    """Another host, whose store has an image."""
    image = make_layout(tmp_path / "layout", layers=[3_000_000], tags=["registry.example/theirs:v1"])
    plugins = f'[store]\nkind = "oci-layout"\npath = "{image.path}"\n[router]\nkind = "static"\npeers = []\n'
    serving = Serving(site, tmp_path / "neighbour", plugins)
    yield serving, image
    serving.process.stop()


@pytest.fixture
def host(site: Path, tmp_path: Path) -> Iterator[tuple[Serving, Image]]:
    """This host: its store has an archive of another image, and its router has no members yet."""
    image = make_layout(tmp_path / "packed", layers=[2000], tags=["registry.example/ours:v1"])
    archive = pack_tar(image.path, tmp_path / "images.tar")
    members = tmp_path / "members"
    members.write_text("")
    plugins = f'[store]\nkind = "archive"\npath = "{archive}"\n[router]\nkind = "members-file"\npath = "{members}"\n'
    serving = Serving(site, tmp_path / "host", plugins + '[resolver]\nkind = "local"\n')
    yield serving, image
    serving.process.stop()


def test_a_third_party_router_and_store_serve_and_find_content(
    host: tuple[Serving, Image], neighbour: tuple[Serving, Image], tmp_path: Path
) -> None:
    here, ours = host
    there, theirs = neighbour
    wait_for(lambda: here.ask("local", "/readyz")[0] == 200, "the third-party store and router are ready")
    assert "store archive, router members-file" in here.process.output()

    status, manifest = here.ask("local", "/v2/ours/manifests/v1?ns=registry.example")
    assert (status, f"sha256:{hashlib.sha256(manifest).hexdigest()}") == (200, ours.target.digest)
    status, layer = here.ask("peer", f"/v2/ours/blobs/{ours.layers[0].digest}?ns=registry.example")
    assert (status, layer) == (200, ours.blob_path(ours.layers[0].digest).read_bytes())

    blob = f"/v2/theirs/blobs/{theirs.layers[0].digest}?ns=registry.example"
    assert here.ask("local", blob)[0] == 404
    (tmp_path / "members").write_text(f"neighbour http://{there.door('peer')}\n")

    def pull() -> bytes | None:
        status, body = here.ask("local", blob)
        return body if status == 200 else None

    assert wait_for(pull, "the neighbour has the blob") == theirs.blob_path(theirs.layers[0].digest).read_bytes()
    (tmp_path / "members").write_text("")
    wait_for(lambda: here.ask("local", blob)[0] == 404, "the neighbour is no longer asked")


def test_third_party_plug_ins_are_listed_with_the_built_in_ones(site: Path) -> None:
    groups = json.loads(peili(site, "plugins", "--json").stdout)
    assert groups["routers"]["members-file"] == "peili_harbour.router:FileRouter"
    assert groups["stores"]["archive"] == "peili_harbour.store:ArchiveStore"
    assert "static" in groups["routers"]


NAMES = ", ".join(sorted([*BUILT_IN[ROUTERS], "members-file"]))
MEMORY = '[store]\nkind = "memory"\n'


@pytest.mark.parametrize(
    ("configuration", "line"),
    [
        (
            MEMORY + '[router]\nkind = "members-file"\n',
            'router.path: a file of members, such as "/etc/harbour/members"',
        ),
        (
            MEMORY + '[router]\nkind = "members-file"\npath = "m"\ninterval = 3\n',
            "router.interval: unknown option; there are: path",
        ),
        (
            MEMORY + '[router]\nkind = "members"\n',
            f"router.kind: no router is called 'members'; there are: {NAMES}",
        ),
        (
            '[store]\nkind = "archive"\npath = 7\n',
            'store.path: an image archive, such as "/media/stick/images.tar", not 7',
        ),
    ],
)
def test_the_error_for_a_wrong_configuration_is_one_line(
    site: Path, configuration: str, line: str, tmp_path: Path
) -> None:
    file = tmp_path / "peili.toml"
    file.write_text(configuration)
    done = peili(site, "serve", "--config", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"peili: {file}: {line}\n")


def test_the_tests_of_the_distribution_pass(site: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", str(HARBOUR / "pyproject.toml"), str(HARBOUR / "tests")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
