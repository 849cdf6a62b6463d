"""Real containerd, for every shape of hosts.toml: it pulls before `peili hosts apply`, after it, where peili does not
run, and after `peili hosts remove`; and what it gets comes from where it should.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
from tests.adapters.containerd.trees import Tree, make, snapshot
from tests.e2e.checks import KIB, expected
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.processes import run
from tests.lab.releases import CONTAINERD_1, RELEASE_NAMES, ParameterSet, each_release, release
from tests.lab.upstream import Upstream
from tests.support.certificates import Certificate, make_certificate

from peili.adapters.containerd.doctor.version import version_at, version_installed
from peili.adapters.containerd.hosts_toml.meaning import Version
from peili.adapters.standalone.cli import main
from peili.mirror.testing.images import Image, make_layout, pack_tar

REPOSITORY = "library/demo"
OTHER = "registry.invalid"
PLAIN_HTTP = ("--plain-http",)
REFERER = "the-laboratory"


@dataclass(frozen=True)
class World:
    """Two hosts with the same image to pull, which only a third one has. peili runs on one of the two."""

    lab: Lab
    secure: Upstream
    certificate: Certificate
    image: Image

    @property
    def names(self) -> Names:
        own = self.certificate
        files = {"ca.crt": own.ca, "client.cert": own.cert, "client.key": own.key}  # as Docker has them
        return Names(
            self.lab.upstream.name, self.secure.name, {name: each.read_bytes() for name, each in files.items()}
        )

    @property
    def here(self) -> Host:
        return self.lab.hosts["here"]

    @property
    def without(self) -> Host:
        return self.lab.hosts["without"]


@contextmanager
def open_world(name: str) -> Generator[World]:
    """One whose hosts have the containerd of this name."""
    with Lab("here", "without", "there", release=release(name)) as lab:
        layout = lab.directory / "layout"
        image = make_layout(layout, layers=[300 * KIB, 20 * KIB], tags=["v1", f"{OTHER}/{REPOSITORY}:v1"])
        for repository in (REPOSITORY, f"hub/{REPOSITORY}"):
            lab.upstream.push(image, repository)
        lab.hosts["there"].containerd.import_archive(pack_tar(layout, lab.directory / "image.tar"))
        node = lab.network.add_node("secure")
        certificate = make_certificate(lab.directory / "certificates", node.address)
        secure = Upstream(node, lab.directory / "secure", storage=lab.upstream.storage, certificate=certificate)
        secure.start()
        try:
            lab.start_peili("here", "there")
            yield World(lab, secure, certificate, image)
        finally:
            secure.stop()


Worlds = Callable[[str], World]


@pytest.fixture(scope="module")
def worlds() -> Generator[Worlds]:
    """A world for each version of containerd, made when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def world(name: str) -> World:
            return stack.enter_context(open_world(name))

        yield world


@pytest.fixture
def world(worlds: Worlds, request: pytest.FixtureRequest) -> World:
    return worlds(request.param)


@dataclass(frozen=True)
class Shape:
    """A hosts folder before `apply`, the registry that is pulled from, and what else is told to ctr and to `apply`."""

    tree: Tree
    registry: str
    pull: tuple[str, ...] = ()
    apply: tuple[str, ...] = ()
    by_tls: bool = False
    by_default: bool = False  # nothing says where the registry is: containerd takes one on loopback for plain HTTP
    refused_by_1: bool = False  # containerd 1.x overlooks the file, and with peili in it another host would be asked


@dataclass(frozen=True)
class Names:
    """What the shapes are written with: two registries, of which one wants certificates, and these."""

    plain: str
    secure: str
    files: Mapping[str, bytes]

    @property
    def mirror(self) -> str:
        return f'[host."http://{self.plain}"]\ncapabilities = ["pull", "resolve"]\n'


def one(content: str, *apply: str) -> Shape:
    """A single file, for a registry that can only be had by a mirror."""
    return Shape({f"{OTHER}/hosts.toml": content.encode()}, OTHER, apply=apply)


def with_certificates(
    names: Names, directory: str, hosts_toml: str | None = None, *apply: str, keys: str = ""
) -> Shape:
    """The registry that wants certificates, and where they are."""
    tree = {f"{directory}/{keys}{name}": content for name, content in names.files.items()}
    if hosts_toml is not None:
        tree[f"{directory}/hosts.toml"] = hosts_toml.encode()
    return Shape(tree, names.secure, apply=apply, by_tls=True, by_default="[host" not in (hosts_toml or ""))


SHAPES: Mapping[str, Callable[[Names], Shape]] = {
    "no file": lambda n: Shape({}, n.plain, PLAIN_HTTP),
    "an empty directory": lambda n: Shape({n.plain: None}, n.plain, PLAIN_HTTP),
    "server only": lambda n: Shape(
        {f"{n.plain.replace(':', '_')}_/hosts.toml": f'server = "http://{n.plain}"'.encode()},
        n.plain,
        PLAIN_HTTP,
        refused_by_1=True,
    ),
    "_default only": lambda n: Shape({"_default/hosts.toml": n.mirror.encode()}, OTHER),
    "_default, one registry chosen": lambda n: Shape(
        {"_default/hosts.toml": n.mirror.encode()}, OTHER, apply=("--registry", OTHER)
    ),
    "mirrors and server": lambda n: one(f'server = "http://{n.plain}"\n\n[host."http://127.0.0.1:1"]\n{n.mirror}'),
    "comments, CRLF, a byte-order mark": lambda n: one(
        f'\ufeff# top\n\nserver = "http://{n.plain}"\n# of it\n{n.mirror} # end'.replace("\n", "\r\n")
    ),
    "the parent table first": lambda n: one(f'[host]\n\n  [host."http://{n.plain}"]'),
    "dotted keys": lambda n: one(f'host."http://{n.plain}".capabilities = ["pull", "resolve"]'),
    "a dial_timeout": lambda n: one(n.mirror, "--containerd-version", "2.1.0"),
    "headers": lambda n: one(f'{n.mirror}[host."http://{n.plain}".header]\nReferer = "{REFERER}"\n'),
    "override_path": lambda n: Shape(
        {"docker.io/hosts.toml": f'[host."http://{n.plain}/v2/hub"]\noverride_path = true\n'.encode()}, "docker.io"
    ),
    "Docker-style certificates": lambda n: with_certificates(n, n.secure),
    "Docker-style certificates, server only": lambda n: with_certificates(
        n, n.secure, f'server = "https://{n.secure}"'
    ),
    "Docker-style certificates of _default": lambda n: with_certificates(n, "_default", None, "--registry", n.secure),
    "ca and client": lambda n: with_certificates(
        n,
        n.secure,
        f'server = "https://{n.secure}"\nca = "keys/ca.crt"\nclient = [["keys/client.cert", "keys/client.key"]]\n'
        '[host."https://127.0.0.1:1"]\n',
        keys="keys/",
    ),
}


ONLY_1 = {"dotted keys", "comments, CRLF, a byte-order mark", "Docker-style certificates, server only"}
"""containerd 2.x reads these otherwise, and can't pull by them, with or without peili."""


def pairs() -> list[ParameterSet]:
    """Each shape on two of the versions, each version with shapes of all kinds; or all on the one that is asked for."""
    found: list[ParameterSet] = []
    for number, (name, shape) in enumerate(SHAPES.items()):
        able = [each for each in RELEASE_NAMES if name not in ONLY_1 or each in CONTAINERD_1]
        chosen = (able[number % len(able)], able[(number + number // len(able) + 1) % len(able)])
        found += [
            pytest.param(*each.values, shape, id=f"{name}-{each.values[0]}", marks=each.marks)
            for each in each_release(*dict.fromkeys(chosen))
            if each.values[0] in able
        ]
    return found


@pytest.mark.parametrize(("world", "make_shape"), pairs(), indirect=["world"])
def test_containerd_pulls_all_along(world: World, make_shape: Callable[[Names], Shape]) -> None:
    shape = make_shape(world.names)
    if shape.by_default and not world.lab.network.privileged:
        pytest.skip("containerd speaks no TLS to a registry on loopback; this needs root")
    for host in (world.here, world.without):
        shutil.rmtree(host.containerd.hosts, ignore_errors=True)
        make(host.containerd.hosts, shape.tree)
    here, was = world.here, snapshot(world.here.containerd.hosts)

    assert blobs_from_upstream(world, here, shape) > 0
    if shape.refused_by_1 and here.containerd.release.name in CONTAINERD_1:
        assert peili_hosts("apply", here, "--registry", shape.registry) == 1
        assert snapshot(here.containerd.hosts) == was
        return
    for host in (world.here, world.without):
        assert peili_hosts("apply", host, *shape.apply) == 0
    assert blobs_from_upstream(world, here, shape) == 0  # they came from there
    assert blobs_from_upstream(world, world.without, shape) > 0
    assert peili_hosts("remove", here) == 0
    assert snapshot(here.containerd.hosts) == was
    assert blobs_from_upstream(world, here, shape) > 0


@pytest.mark.parametrize("world", each_release(*RELEASE_NAMES), indirect=True)
def test_the_one_switch_of_peili_serve(world: World) -> None:
    """On while it runs, off when it is stopped; killed, it leaves a host that refuses connections, and no harm."""
    shape, host = one(world.names.mirror), world.without
    shutil.rmtree(host.containerd.hosts, ignore_errors=True)
    make(host.containerd.hosts, shape.tree)
    was = snapshot(host.containerd.hosts)
    switch = {"apply": True, "config_path": [str(host.containerd.hosts)]}
    patient = {**GENEROUS_LIMITS, "start_timeout": 60, "stop_timeout": 60}
    try:
        world.lab.start_peili("without", hosts=switch, limits=patient)
        assert blobs_from_upstream(world, host, shape) == 0
        host.peili.kill()
        assert snapshot(host.containerd.hosts) != was
        assert blobs_from_upstream(world, host, shape) > 0
        world.lab.start_peili("without", hosts=switch, limits=patient)
    finally:
        host.peili.stop()
    assert snapshot(host.containerd.hosts) == was
    assert blobs_from_upstream(world, host, shape) > 0


@pytest.mark.parametrize("world", each_release(*RELEASE_NAMES), indirect=True)
def test_it_is_asked_for_its_version(world: World) -> None:
    containerd = world.here.containerd
    running = asyncio.run(version_at(containerd.socket))
    assert running is not None
    assert running == run([containerd.release.program("containerd"), "--version"]).decode().split()[2]
    assert Version.parse(running).major == (1 if containerd.release.name in CONTAINERD_1 else 2)


def test_without_one_that_runs_the_installed_one_is_asked() -> None:
    installed = asyncio.run(version_installed())
    assert installed is not None
    Version.parse(installed)


def peili_hosts(action: str, host: Host, *options: str) -> int:
    version = asyncio.run(version_at(host.containerd.socket))
    assert version is not None
    known = ["--config-path", str(host.containerd.hosts), "--mirror", f"http://{host.peili.local}"]
    return main(["hosts", action, *known, "--containerd-version", version, *options])


def blobs_from_upstream(world: World, host: Host, shape: Shape) -> int:
    """Pull the image, which is then gone again; how many of its blobs came from upstream."""
    upstream = world.secure if shape.by_tls else world.lab.upstream
    reference = f"{shape.registry}/{REPOSITORY}:v1"
    before = upstream.log_position()
    host.containerd.pull(reference, *shape.pull)
    assert not expected(world.image) - host.containerd.digests()
    host.containerd.remove(reference)
    assert not expected(world.image) & host.containerd.digests()
    upstream.log_position()
    if REFERER in str(shape.tree):
        assert any(each.referer == REFERER for each in upstream.requests(before))
    return len(upstream.blobs_sent(before))
