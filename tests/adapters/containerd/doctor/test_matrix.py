"""The doctor reports that all is well exactly if a real containerd uses peili and what it pulls can be shared.

Every pair of choices occurs in some configuration. With PEILI_DOCTOR_MATRIX=3, or with a single release
(PEILI_CONTAINERD), every triple does, and so on up to 6, which is every combination.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.adapters.containerd.doctor.configurations import DEVIATIONS, IMAGES, NAMESPACES, STRUCTURE, USUAL, files
from tests.adapters.containerd.doctor.machine import PULLED, Machine, mounts_work
from tests.containerd_releases import available_releases
from tests.lab.lab import missing_commands
from tests.lab.network import PEER_PORT, LoopbackNetwork, Node
from tests.lab.peili_process import PeiliProcess
from tests.lab.processes import CommandFailed, wait_for
from tests.lab.releases import RELEASE_NAMES, release
from tests.support.combinations import combinations
from tests.support.directories import short_directory

from peili.adapters.standalone.cli import main
from peili.mirror.testing.images import Image, make_layout

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

pytestmark = [
    pytest.mark.skipif(bool(missing_commands()), reason=f"not installed: {' '.join(missing_commands())}"),
    pytest.mark.skipif(not mounts_work(), reason="needs root, and mount namespaces"),
]

REGISTRY = "127.0.0.1:1"
"""Nothing listens there, so all that is pulled from it comes from peili."""

_MANIFESTS_SERVED = re.compile(
    r'^peili_requests_total\{(?=.*door="local")(?=.*endpoint="manifests")(?=.*status="200").*\} (\S+)$', re.MULTILINE
)

CHECKS = {
    "containerd",
    "configuration",
    "CRI plug-in",
    "config_path",
    "mirrors",
    "transfer service",
    "discard_unpacked_layers",
    "snapshotter",
    "hosts.toml",
    "namespaces",
    "restart",
}
"""The checks of the configuration, without those of peili itself."""

SHARING = {"discard_unpacked_layers", "snapshotter", "namespaces"}
"""The checks of whether content can be shared. The others are about whether containerd uses peili."""


@dataclass(frozen=True)
class Setup:
    """One peili for each choice of namespaces, all with the same containerd, and a neighbour that has the image."""

    directory: Path
    image: Image
    peilis: Mapping[str, PeiliProcess]
    nodes: Mapping[str, Node]

    def url(self, namespaces: str) -> str:
        return f"http://{self.peilis[namespaces].local}"

    def manifests_served(self, namespaces: str) -> float:
        """Return how many manifests peili has served."""
        metrics = self.peilis[namespaces].request("GET", "/metrics").body.decode()
        return sum(float(each[1]) for each in _MANIFESTS_SERVED.finditer(metrics))

    def shares(self, namespaces: str) -> bool:
        """Return whether other hosts get the image's layer from this peili."""
        node = self.nodes[namespaces]
        path = f"/v2/demo/blobs/{self.image.layers[0].digest}?ns={REGISTRY}"
        return node.request("HEAD", node.address, node.port(PEER_PORT), path).status == 200


@pytest.fixture(scope="module")
def setup() -> Generator[Setup]:
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        network = stack.enter_context(LoopbackNetwork())
        image = make_layout(directory / "image", layers=[1000], tags=["v1"])
        neighbour = PeiliProcess(network.add_node("there"), "there", directory / "there")
        stack.callback(neighbour.stop)
        store = {"kind": "oci-layout", "path": str(image.path)}
        neighbour.start({"store": store, "router": {"kind": "static", "peers": []}})
        nodes = {each: network.add_node(each) for each in NAMESPACES}
        peilis = {each: PeiliProcess(node, each, directory / each) for each, node in nodes.items()}
        with Machine(release(), directory / "m") as machine:  # peili is not ready before it has seen a containerd
            machine.start()
            for each, peili in peilis.items():
                stack.callback(peili.stop)
                served = [] if each == "all" else [each]
                peili.start(
                    {
                        "store": {"kind": "containerd", "address": str(machine.socket), "namespaces": served},
                        "router": {"kind": "static", "peers": [f"http://{neighbour.peer}"]},
                    }
                )
        yield Setup(directory, image, peilis, nodes)


ONLY = os.environ.get("PEILI_CONTAINERD")
STRENGTH = int(os.environ.get("PEILI_DOCTOR_MATRIX", "3" if ONLY else "2"))
WORKS = {"installed": ("2 old",), "trixie": ("2 old",)}
"""The layouts with which a usual configuration leads to peili, for releases where not all do."""


def choices() -> Iterator[dict[str, str]]:
    """Yield the choices to test: all forms, and each deviation with one, two or all releases."""
    names = (ONLY,) if ONLY else RELEASE_NAMES
    yield from ({**USUAL, **each} for each in combinations({"release": names, **STRUCTURE}, STRENGTH))
    for position, deviation in enumerate(DEVIATIONS):
        for turn, name in enumerate(names):
            layouts = WORKS.get(name, ("2 old", "3 new", "2 new"))
            # peili's own configuration and hosts.toml mean the same to all releases; test_status.py has more.
            releases_each = 1 if {"hosts", "namespaces"} & {*deviation} else 2
            if STRENGTH > 2 or (position + turn) % len(names) < releases_each:
                layout = layouts[position % len(layouts)]
                yield {**USUAL, "release": name, "layout": layout, **deviation}


def case(name: str, *values: object) -> ParameterSet:
    """Return parameters for the release `name`, whatever the environment selects; skipped if it is not available."""
    is_available = name in {each.name for each in available_releases()}
    return pytest.param(
        *values, marks=[] if is_available else [pytest.mark.skip(reason=f"not available: containerd {name}")]
    )


CHOICES = list(choices())


@pytest.mark.parametrize(
    "choice",
    [case(each["release"], each) for each in CHOICES],
    ids=[", ".join(f"{key}={value}" for key, value in each.items() if value != USUAL.get(key)) for each in CHOICES],
)
def test_the_doctor_agrees_with_containerd(setup: Setup, choice: Mapping[str, str]) -> None:
    with Machine(release(choice["release"]), setup.directory / "m") as machine:
        folder = machine.etc / "containerd/certs.d"
        for name, text in files(choice, folder).items():
            file = machine.etc / "containerd" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        write_hosts(choice["hosts"], setup.url(choice["namespaces"]), folder)
        has_started = starts(machine, *flags(choice, machine))
        is_used, outcome = pull(setup, machine, choice["namespaces"]) if has_started else (False, "")
        results = examine(setup, machine, choice, has_started=has_started)
        failures = {each["about"]: each["what"] for each in results if each["level"] == "fail"}
        warnings = {each["about"]: each["what"] for each in results if each["level"] == "warn"}
        details = f"{is_used=} {outcome=}\nfail: {failures}\nwarn: {warnings}\n{machine.warnings()}"
        if "CRI plug-in" in warnings:  # it is switched off, so the doctor cannot know which client pulls, and how
            assert not is_used, details
        elif is_used and outcome == PULLED:
            assert (not failures) is is_shared(setup, machine, choice), details
        else:
            assert ({*failures} <= SHARING) is is_used, details


def write_hosts(kind: str, url: str, folder: Path) -> None:
    """Write a hosts.toml in `folder` that leads to `url`, or has the mistake `kind`."""
    (folder / "_default").mkdir(parents=True)
    first = '[host."http://127.0.0.1:2"]\n' if kind == "second" else ""
    path = "/v2" if kind == "override v2" else ""
    capability = "resolve" if kind == "no pull" else "pull"
    settings = {
        "override": "override_path = true\n",
        "override v2": "override_path = true\n",
        "broken": 'ca = "/nowhere/ca.crt"\n',
    }
    if kind != "none":
        text = f'{first}[host."{url}{path}"]\ncapabilities = ["{capability}"]\n{settings.get(kind, "")}'
        (folder / "_default/hosts.toml").write_text(text)


def flags(choice: Mapping[str, str], machine: Machine) -> list[str]:
    """Return the flag for the configuration file, if a process outside the machine can see the file."""
    return [] if uses_default_paths(choice) else ["--config", str(machine.etc / "containerd/config.toml")]


def uses_default_paths(choice: Mapping[str, str]) -> bool:
    """Return whether containerd uses its default paths, which only a process on the machine can see."""
    return choice["layout"] == "no file" or choice["folders"] in {"unset", "empty"}


def starts(machine: Machine, *arguments: str) -> bool:
    """Start containerd. Return False if it refuses to start."""
    try:
        machine.start(*arguments)
    except CommandFailed:
        return False
    return True


def pull(setup: Setup, machine: Machine, namespaces: str) -> tuple[bool, str]:
    """Pull the image. Return whether peili served a manifest, and `PULLED` or the error."""
    before = setup.manifests_served(namespaces)
    outcome = machine.pull(f"{REGISTRY}/demo@{setup.image.target.digest}")
    return setup.manifests_served(namespaces) > before, outcome


def is_shared(setup: Setup, machine: Machine, choice: Mapping[str, str]) -> bool:
    """Return whether other hosts get what was pulled, after containerd has dropped what it does not keep."""
    machine.collect_garbage()
    is_kept = setup.image.layers[0].digest in machine.digests()
    served = choice["namespaces"]
    if served == "default":
        return setup.shares(served)
    wait_for(lambda: setup.shares(served) is is_kept, "peili follows containerd")
    return is_kept


def examine(setup: Setup, machine: Machine, choice: Mapping[str, str], *, has_started: bool) -> list[dict[str, str]]:
    """Return the doctor's results for the configuration."""
    arguments = ["doctor", "--json", "--config", str(setup.peilis[choice["namespaces"]].configuration)]
    if has_started and uses_default_paths(choice):
        output = machine.call(partial(printed, arguments))
    else:
        output = printed([*arguments, "--containerd-config", str(machine.etc / "containerd/config.toml")])
    return [each for each in json.loads(output)["findings"] if each["about"] in CHECKS]


def printed(arguments: Sequence[str]) -> str:
    """Run the command, and return what it prints. Another process would need a second of CPU time to start."""
    out = io.StringIO()
    with redirect_stdout(out):
        main(arguments)
    return out.getvalue()


FIXED = [
    ("2.4.2", "no file", "unset"),
    ("2.4.2", "0 cri", "two"),
    ("2.1.4", "2 old", "two"),
    ("forky", "3 old", "one"),
    ("forky", "3 new", "unset"),
    ("trixie", "2 new", "one"),
    ("installed", "0 old", "one"),
    *(
        [
            ("2.4.2", "4 old", "one"),
            ("2.4.2", "3 new", "empty"),
            ("2.1.4", "2 new", "unset"),
            ("forky", "0 cri", "one"),
            ("trixie", "0 cri", "unset"),
            ("installed", "no file", "unset"),
            ("installed", "2 old", "unset"),
        ]
        if STRENGTH > 2
        else []
    ),
]


@pytest.mark.parametrize(
    ("name", "layout", "folders"),
    [case(each[0], *each) for each in FIXED],
)
def test_the_doctors_fix_for_config_path_works(setup: Setup, name: str, layout: str, folders: str) -> None:
    choice = {**USUAL, "layout": layout, "folders": folders}
    text = ""
    is_used: list[bool] = []
    for _ in range(2):
        with Machine(release(name), setup.directory / "m") as machine:
            folder = machine.etc / "containerd/certs.d"
            text = text or files(choice, folder).get("config.toml", "")
            if text:
                (machine.etc / "containerd/config.toml").write_text(text)
            write_hosts("ours", setup.url("all"), folder)
            machine.start()
            is_used.append(pull(setup, machine, "all")[0])
            # The doctor means the usual directory, which must exist.
            results = [] if is_used[1:] else examine(setup, machine, {**choice, "folders": "unset"}, has_started=True)
        fixes = [re.findall(r'^set config_path = "(.*)" in (\[.*\]),', each["fix"]) for each in results]
        for [(path, header)] in filter(None, fixes):
            text = with_path(text, header, path)
        if any(each["fix"].startswith("set version = 2 at the beginning of ") for each in results):
            text = f"version = 2\n{text}"
    assert is_used == [False, True], text


def with_path(text: str, header: str, path: str) -> str:
    """Return `text` with `path` as `config_path` under `header`."""
    line = f'{header}\nconfig_path = "{path}"\n'
    written = re.compile(re.escape(header.replace("[plugins.cri.", '[plugins."cri".')) + r"\nconfig_path = .*\n")
    return written.sub(line, text) if written.search(text) else text + line


NOT_READ = "its transfer service takes several directories for one; set config_path = "


@pytest.mark.parametrize("name", [case("2.4.2", "2.4.2")])
@pytest.mark.parametrize(
    ("text", "read"),
    [
        (None, False),
        ("version = 4\n", False),
        (f'version = 4\n[plugins."{IMAGES}"]\nuse_local_image_pull = true\n', True),
        (f'version = 4\n[plugins."{IMAGES}".registry]\nconfig_path = "/etc/containerd/certs.d"\n', True),
    ],
)
def test_apply_warns_that_2_4_ignores_hosts_toml_by_default_and_says_how_to_fix_it(
    setup: Setup, name: str, text: str | None, *, read: bool
) -> None:
    configuration = str(setup.peilis["all"].configuration)
    with Machine(release(name), setup.directory / "m") as machine:
        if text is not None:
            (machine.etc / "containerd/config.toml").write_text(text)
        machine.start()
        command = [sys.executable, "-m", "peili.adapters.standalone", "hosts", "apply", "--config", configuration]
        done = machine.run(command)
        assert (machine.etc / "containerd/certs.d/_default/hosts.toml").exists()
        assert done.returncode == 0
        assert (NOT_READ in done.stderr) is not read
        assert (done.stderr == "") is read
        assert pull(setup, machine, "all")[0] is read
    if read:
        return
    folder, header = re.findall(r'set config_path = "(.*)" in (\[.*\]),', done.stderr)[0]
    with Machine(release(name), setup.directory / "m") as machine:
        (machine.etc / "containerd/config.toml").write_text(f'{text or ""}{header}\nconfig_path = "{folder}"\n')
        write_hosts("ours", setup.url("all"), machine.etc / "containerd/certs.d")
        machine.start()
        assert pull(setup, machine, "all")[0]


@pytest.mark.parametrize(("name", "level"), [case("2.4.2", "2.4.2", "fail"), case("trixie", "trixie", "warn")])
def test_a_file_that_changed_after_containerd_started_is_not_in_force(setup: Setup, name: str, level: str) -> None:
    """containerd 2.4 reports its settings; for others, only the modification time of the file is known."""
    with Machine(release(name), setup.directory / "m") as machine:
        folder = machine.etc / "containerd/certs.d"
        write_hosts("ours", setup.url("all"), folder)
        file = machine.etc / "containerd/config.toml"
        file.write_text("version = 2\n")
        machine.start("--config", str(file))
        file.write_text(files({**USUAL, "layout": "2 old"}, folder)["config.toml"])
        later = time.time() + 60
        os.utime(file, (later, later))
        results = examine(setup, machine, {**USUAL, "layout": "2 old"}, has_started=True)
        problems = [(each["level"], each["about"]) for each in results if each["level"] != "ok"]
        assert problems == [(level, "restart")]
        assert not pull(setup, machine, "all")[0]
