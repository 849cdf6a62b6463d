"""`peili hosts` with a real containerd, for many forms of hosts.toml.

containerd pulls before `peili hosts apply`, after it, while peili does not run, and after `peili hosts remove`. The
tests check whether the content came from a peer or from upstream.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import pytest
from tests.e2e.checks import KIB, platform_digests, wait_found
from tests.e2e.mounted_agent import PATH
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.network import LOCAL_PORT
from tests.lab.processes import Process, run, wait_for
from tests.lab.releases import CONTAINERD_1, RELEASE_NAMES, ParameterSet, each_release, release
from tests.lab.upstream import Published, Upstream
from tests.support.certificates import Authority, Certificate, make_certificate
from tests.support.trees import Tree, make_tree, snapshot

from peili.adapters.containerd.version import ContainerdVersion, installed_version, running_version
from peili.adapters.standalone.cli import main
from peili.mirror.testing.images import Image, make_layout, pack_tar

REPOSITORY = "library/demo"
OTHER = "registry.invalid"
PLAIN_HTTP = ("--plain-http",)
REFERER = "the-laboratory"


@dataclass(frozen=True)
class Setup:
    """A laboratory in which the host `holder` has an image that two other hosts pull.

    Attributes:
        secure: A registry with the same content as `lab.upstream`. It speaks TLS and requires a client certificate.
        certificate: A certificate that `secure` accepts.
        image: The image, which both registries have.
    """

    lab: Lab
    secure: Upstream
    certificate: Certificate
    image: Image

    @property
    def registries(self) -> Registries:
        own = self.certificate
        files = {"ca.crt": own.ca, "client.cert": own.cert, "client.key": own.key}  # Docker's file names
        return Registries(
            self.lab.upstream.name, self.secure.name, {name: each.read_bytes() for name, each in files.items()}
        )

    @property
    def puller(self) -> Host:
        """The host on which peili runs and finds the image on the holder."""
        return self.lab.hosts["puller"]

    @property
    def without_peili(self) -> Host:
        """The host on which peili does not run."""
        return self.lab.hosts["without-peili"]

    @property
    def published(self) -> Published:
        """The image, as the plain registry has it."""
        return Published(self.image, self.lab.upstream.name, REPOSITORY, "v1")


@contextmanager
def open_setup(name: str) -> Generator[Setup]:
    """Start the laboratory with the containerd release of this name."""
    with Lab("puller", "without-peili", "holder", release=release(name)) as lab:
        layout = lab.directory / "layout"
        image = make_layout(layout, layers=[300 * KIB, 20 * KIB], tags=["v1", f"{OTHER}/{REPOSITORY}:v1"])
        for repository in (REPOSITORY, f"hub/{REPOSITORY}"):
            lab.upstream.push(image, repository)
        lab.hosts["holder"].containerd.import_archive(pack_tar(layout, lab.directory / "image.tar"))
        node = lab.network.add_node("secure")
        certificate = make_certificate(lab.directory / "certificates", node.address)
        secure = Upstream(node, lab.directory / "secure", storage=lab.upstream.storage, certificate=certificate)
        secure.start()
        try:
            lab.start_peili("puller", "holder")
            setup = Setup(lab, secure, certificate, image)
            wait_found(setup.puller, setup.published)
            yield setup
        finally:
            secure.stop()


SetupFactory = Callable[[str], Setup]


@pytest.fixture(scope="module")
def setups() -> Generator[SetupFactory]:
    """A function that returns the setup of a containerd release. It starts the setup at the first call."""
    with ExitStack() as stack:

        @cache
        def setup(name: str) -> Setup:
            return stack.enter_context(open_setup(name))

        yield setup


@pytest.fixture
def setup(setups: SetupFactory, request: pytest.FixtureRequest) -> Setup:
    return setups(request.param)


@dataclass(frozen=True)
class Case:
    """A form of hosts.toml.

    Attributes:
        tree: The files of the hosts directory before `peili hosts apply`.
        registry: The registry in the reference of the image.
        pull: Further options of `ctr`.
        apply: Further options of `peili hosts apply`.
        with_tls: Whether the content comes from `Setup.secure`.
        implicit_server: Whether no file has the URL of the registry. containerd then uses HTTP for one on loopback.
        refused_by_containerd_1: Whether `apply` refuses the case for containerd 1.x. That release ignores the file, and
            would use another host if peili were in it.
    """

    tree: Tree
    registry: str
    pull: tuple[str, ...] = ()
    apply: tuple[str, ...] = ()
    with_tls: bool = False
    implicit_server: bool = False
    refused_by_containerd_1: bool = False


@dataclass(frozen=True)
class Registries:
    """What the cases contain: the names of the two registries, and the certificate files for `secure`, by name."""

    plain: str
    secure: str
    files: Mapping[str, bytes]

    @property
    def mirror(self) -> str:
        """A host table in TOML that makes the plain registry a mirror."""
        return f'[host."http://{self.plain}"]\ncapabilities = ["pull", "resolve"]\n'


def mirror_only(content: str, *apply: str) -> Case:
    """Return a case with one file, for a registry that does not exist. Only mirrors in the file have the content."""
    return Case({f"{OTHER}/hosts.toml": content.encode()}, OTHER, apply=apply)


def with_certificates(
    registries: Registries, directory: str, hosts_toml: str | None = None, *apply: str, keys: str = ""
) -> Case:
    """Return a case for the registry that requires certificates.

    Args:
        registries: See `Registries`.
        directory: The directory of the certificates and of `hosts_toml`.
        hosts_toml: The content of hosts.toml. The default is that there is no such file.
        apply: Further options of `peili hosts apply`.
        keys: A prefix of the paths of the certificates in `directory`.
    """
    tree = {f"{directory}/{keys}{name}": content for name, content in registries.files.items()}
    if hosts_toml is not None:
        tree[f"{directory}/hosts.toml"] = hosts_toml.encode()
    return Case(tree, registries.secure, apply=apply, with_tls=True, implicit_server="[host" not in (hosts_toml or ""))


CASES: Mapping[str, Callable[[Registries], Case]] = {
    "no file": lambda r: Case({}, r.plain, PLAIN_HTTP),
    "an empty directory": lambda r: Case({r.plain: None}, r.plain, PLAIN_HTTP),
    "server only": lambda r: Case(
        {f"{r.plain.replace(':', '_')}_/hosts.toml": f'server = "http://{r.plain}"'.encode()},
        r.plain,
        PLAIN_HTTP,
        refused_by_containerd_1=True,
    ),
    "_default only": lambda r: Case({"_default/hosts.toml": r.mirror.encode()}, OTHER),
    "_default, one registry chosen": lambda r: Case(
        {"_default/hosts.toml": r.mirror.encode()}, OTHER, apply=("--registry", OTHER)
    ),
    "mirrors and server": lambda r: mirror_only(
        f'server = "http://{r.plain}"\n\n[host."http://127.0.0.1:1"]\n{r.mirror}'
    ),
    "comments, CRLF, a byte-order mark": lambda r: mirror_only(
        f'\ufeff# top\n\nserver = "http://{r.plain}"\n# of it\n{r.mirror} # end'.replace("\n", "\r\n")
    ),
    "the parent table first": lambda r: mirror_only(f'[host]\n\n  [host."http://{r.plain}"]'),
    "dotted keys": lambda r: mirror_only(f'host."http://{r.plain}".capabilities = ["pull", "resolve"]'),
    "a dial_timeout": lambda r: mirror_only(r.mirror, "--containerd-version", "2.1.0"),
    "headers": lambda r: mirror_only(f'{r.mirror}[host."http://{r.plain}".header]\nReferer = "{REFERER}"\n'),
    "override_path": lambda r: Case(
        {"docker.io/hosts.toml": f'[host."http://{r.plain}/v2/hub"]\noverride_path = true\n'.encode()}, "docker.io"
    ),
    "Docker-style certificates": lambda r: with_certificates(r, r.secure),
    "Docker-style certificates, server only": lambda r: with_certificates(
        r, r.secure, f'server = "https://{r.secure}"'
    ),
    "Docker-style certificates of _default": lambda r: with_certificates(r, "_default", None, "--registry", r.secure),
    "ca and client": lambda r: with_certificates(
        r,
        r.secure,
        f'server = "https://{r.secure}"\nca = "keys/ca.crt"\nclient = [["keys/client.cert", "keys/client.key"]]\n'
        '[host."https://127.0.0.1:1"]\n',
        keys="keys/",
    ),
}


ONLY_CONTAINERD_1 = {"dotted keys", "comments, CRLF, a byte-order mark", "Docker-style certificates, server only"}
"""containerd 2.x parses these cases differently and can't pull with them, with or without peili."""


def cases_and_releases() -> list[ParameterSet]:
    """Return each case with two releases, such that each release has various cases.

    If PEILI_CONTAINERD selects a release, return all cases with that release.
    """
    parameters: list[ParameterSet] = []
    for number, (name, case) in enumerate(CASES.items()):
        able = [each for each in RELEASE_NAMES if name not in ONLY_CONTAINERD_1 or each in CONTAINERD_1]
        chosen = (able[number % len(able)], able[(number + number // len(able) + 1) % len(able)])
        parameters += [
            pytest.param(*each.values, case, id=f"{name}-{each.values[0]}", marks=each.marks)
            for each in each_release(*dict.fromkeys(chosen))
            if each.values[0] in able
        ]
    return parameters


@pytest.mark.parametrize(("setup", "make_case"), cases_and_releases(), indirect=["setup"])
def test_containerd_pulls_before_during_and_after_peili_is_in_hosts_toml(
    setup: Setup, make_case: Callable[[Registries], Case]
) -> None:
    case = make_case(setup.registries)
    if case.implicit_server and not setup.lab.network.privileged:
        pytest.skip("containerd does not use TLS for a registry on loopback; this test needs root")
    for host in (setup.puller, setup.without_peili):
        shutil.rmtree(host.containerd.hosts, ignore_errors=True)
        make_tree(host.containerd.hosts, case.tree)
    puller, original = setup.puller, snapshot(setup.puller.containerd.hosts)

    assert blobs_from_upstream(setup, puller, case) > 0
    if case.refused_by_containerd_1 and puller.containerd.release.name in CONTAINERD_1:
        assert peili_hosts("apply", puller, "--registry", case.registry) == 1
        assert snapshot(puller.containerd.hosts) == original
        return
    for host in (setup.puller, setup.without_peili):
        assert peili_hosts("apply", host, *case.apply) == 0
    assert blobs_from_upstream(setup, puller, case) == 0  # all blobs came from the holder
    assert blobs_from_upstream(setup, setup.without_peili, case) > 0
    assert peili_hosts("remove", puller) == 0
    assert snapshot(puller.containerd.hosts) == original
    assert blobs_from_upstream(setup, puller, case) > 0


@pytest.mark.parametrize("setup", each_release(*RELEASE_NAMES), indirect=True)
def test_peili_serve_is_in_hosts_toml_only_while_it_runs(setup: Setup) -> None:
    """This tests `[hosts] apply = true`. A killed peili stays in hosts.toml, and containerd still pulls."""
    case, host = mirror_only(setup.registries.mirror), setup.without_peili
    shutil.rmtree(host.containerd.hosts, ignore_errors=True)
    make_tree(host.containerd.hosts, case.tree)
    original = snapshot(host.containerd.hosts)
    hosts = {"apply": True, "config_path": [str(host.containerd.hosts)]}
    try:
        setup.lab.start_peili("without-peili", hosts=hosts)
        wait_found(host, setup.published)
        assert blobs_from_upstream(setup, host, case) == 0
        host.peili.kill()
        assert snapshot(host.containerd.hosts) != original
        assert blobs_from_upstream(setup, host, case) > 0
        setup.lab.start_peili("without-peili", hosts=hosts)
    finally:
        host.peili.stop()
    assert snapshot(host.containerd.hosts) == original
    assert blobs_from_upstream(setup, host, case) > 0


TLS_RELEASES = each_release("installed", "2.4.2")
"""A release of containerd 1 and one of containerd 2."""


class LocalTLS:
    """The certificates of a local door and of the runtime, on the host without a peili of its own.

    The host's hosts.toml has a mirror that does not answer, and a server.

    Attributes:
        door: The certificate of the door.
        runtime: The certificate that the runtime shows.
        hosts: The section `[hosts]`.
    """

    def __init__(self, setup: Setup) -> None:
        self.host = setup.without_peili
        self._setup = setup
        self.case = mirror_only(f'server = "http://{setup.registries.plain}"\n\n[host."http://127.0.0.1:1"]\n')
        self.restore()
        directory = setup.lab.directory / "local-tls"
        if not directory.exists():
            authority = Authority(directory / "authority")
            for name in ("door", "runtime"):
                authority.issue(directory / name, self.host.node.loopback).key.chmod(0o600)
        self.door, self.runtime = Certificate.below(directory / "door"), Certificate.below(directory / "runtime")
        self.hosts = {
            "config_path": [str(self.host.containerd.hosts)],
            "ca": str(self.runtime.ca),
            "client_cert": str(self.runtime.cert),
            "client_key": str(self.runtime.key),
        }

    def restore(self) -> None:
        """Write the host's hosts.toml as it was at first."""
        shutil.rmtree(self.host.containerd.hosts, ignore_errors=True)
        make_tree(self.host.containerd.hosts, self.case.tree)

    def check_hosts_toml(self, url: str, **settings: object) -> None:
        """Check that peili is the first host and has the certificates and `settings`, and that the rest is the same."""
        written = tomllib.loads((self.host.containerd.hosts / OTHER / "hosts.toml").read_text())
        assert written["server"] == f"http://{self._setup.registries.plain}"
        assert [*written["host"]] == [url, "http://127.0.0.1:1"]
        own = self.runtime
        expected = {"ca": str(own.ca), "client": [[str(own.cert), str(own.key)]], **settings}
        assert {name: written["host"][url].get(name) for name in expected} == expected

    def blobs_from_upstream(self) -> int:
        return blobs_from_upstream(self._setup, self.host, self.case)


@pytest.mark.parametrize("setup", TLS_RELEASES, indirect=True)
def test_containerd_uses_a_local_door_that_demands_its_certificate(setup: Setup) -> None:
    tls = LocalTLS(setup)
    peili = tls.host.peili
    local = {"cert": str(tls.door.cert), "key": str(tls.door.key), "client_ca": str(tls.door.ca)}
    peili.local_tls = tls.runtime.client_context()
    try:
        setup.lab.start_peili("without-peili", local=local, hosts={**tls.hosts, "apply": True})
        tls.check_hosts_toml(f"https://{peili.local}")
        wait_found(tls.host, setup.published)
        assert tls.blobs_from_upstream() == 0
        peili.kill()
        assert tls.blobs_from_upstream() > 0
    finally:
        peili.local_tls = None
        peili.stop()


@pytest.mark.parametrize("setup", TLS_RELEASES, indirect=True)
def test_containerd_uses_the_door_of_an_agent_below_a_path(setup: Setup) -> None:
    tls = LocalTLS(setup)
    node, address = tls.host.node, tls.host.node.loopback
    port = node.port(LOCAL_PORT)
    holder = f"{setup.lab.access.scheme}://{setup.lab.hosts['holder'].peili.peer}"
    access = setup.lab.access.section("without-peili", node.address)
    job = {
        "host": address,
        "port": port,
        "tls": tls.door.files(),
        "peer": holder,
        "access": access,
        "limits": GENEROUS_LIMITS,
    }
    command = [sys.executable, "-m", "tests.e2e.mounted_agent", json.dumps(job)]
    configuration = setup.lab.directory / "hosts.toml"
    configuration.write_text("[hosts]\n" + "".join(f"{key} = {json.dumps(each)}\n" for key, each in tls.hosts.items()))
    url, context = f"https://{address}:{port}{PATH}", tls.runtime.client_context()

    def answers(path: str) -> bool:
        with suppress(OSError):
            return node.request("HEAD", address, port, path, tls=context).status == 200
        return False

    agent = Process(node.command(command), setup.lab.directory / "agent.log")
    try:
        wait_for(lambda: answers(f"{PATH}/"), "the agent answers")
        for digest in platform_digests(setup.image):
            path = setup.published.blob_url(digest).replace("/v2", PATH, 1)
            wait_for(lambda path=path: answers(path), f"the agent finds {digest}")  # type: ignore[misc]  # bound early
        assert peili_hosts("apply", tls.host, "--config", str(configuration), "--mirror", url) == 0
        tls.check_hosts_toml(url, override_path=True)
        assert tls.blobs_from_upstream() == 0
    finally:
        agent.stop()
    assert tls.blobs_from_upstream() > 0


@pytest.mark.parametrize("setup", each_release(*RELEASE_NAMES), indirect=True)
def test_a_running_containerd_is_asked_for_its_version(setup: Setup) -> None:
    containerd = setup.puller.containerd
    running = version_of(setup.puller)
    assert running == run([containerd.release.program("containerd"), "--version"]).decode().split()[2]
    assert ContainerdVersion.parse(running).major == (1 if containerd.release.name in CONTAINERD_1 else 2)


def test_the_installed_containerd_is_asked_for_its_version() -> None:
    installed = wait_for(lambda: asyncio.run(installed_version()), "containerd says its version in time")
    ContainerdVersion.parse(installed or "")


def peili_hosts(action: str, host: Host, *options: str) -> int:
    """Run `peili hosts` for the containerd of `host`, and return the exit status."""
    command = ["hosts", action, "--config-path", str(host.containerd.hosts), "--mirror", f"http://{host.peili.local}"]
    return main([*command, "--containerd-version", version_of(host), *options])


def version_of(host: Host) -> str:
    """Return the version of the host's containerd, which may not say it in time at first."""
    version = wait_for(lambda: asyncio.run(running_version(host.containerd.socket)), "containerd says its version")
    return version or ""


def blobs_from_upstream(setup: Setup, host: Host, case: Case) -> int:
    """Pull the image, remove it again, and return how many of its blobs upstream has sent."""
    upstream = setup.secure if case.with_tls else setup.lab.upstream
    reference = f"{case.registry}/{REPOSITORY}:v1"
    before = upstream.log_position()
    host.containerd.pull(reference, *case.pull)
    assert all(host.containerd.blob_path(each).exists() for each in platform_digests(setup.image))
    host.containerd.remove(reference)
    assert not platform_digests(setup.image) & host.containerd.digests()
    if REFERER in str(case.tree):
        assert any(each.referer == REFERER for each in upstream.requests(before))
    return len(upstream.blobs_sent(before))
