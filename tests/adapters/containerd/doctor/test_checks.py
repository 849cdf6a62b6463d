"""The checks of the doctor with made-up input: configurations of containerd 2.x, and answers that peili never sends."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.rights.hosts import running
from tests.mirror.tls.tls_hosts import host_keys, tls_host
from tests.support.certificates import make_certificate
from tests.support.plain_http import plain_client
from tests.support.stream_server import silent, stream_server

from peili.adapters.containerd.doctor.config_checks import check_configuration, check_hosts, check_tag_requests
from peili.adapters.containerd.doctor.configuration import Configuration, InvalidConfiguration, read_configuration
from peili.adapters.containerd.doctor.daemon_checks import config_argument
from peili.adapters.containerd.doctor.mirror_checks import (
    MirrorStatus,
    check_containerd_requests,
    check_credentials,
    check_local_door,
    check_readiness,
    check_request,
    check_rights,
    make_client,
)
from peili.adapters.containerd.doctor.peer_checks import check_peer_door, check_peers, make_peer_client
from peili.adapters.containerd.doctor.registry_settings import registry_settings
from peili.adapters.containerd.doctor.result import CheckResult, Level, fail, ok, summary, warn
from peili.adapters.containerd.hosts_toml.hosts_files import HostsFiles
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.standalone.cli import main
from peili.mirror import Descriptor, Digest, Mirror, Peer, PullRights, Reference, Selection, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

IMAGES = 'plugins."io.containerd.cri.v1.images"'
CRI = 'plugins."io.containerd.grpc.v1.cri"'
ONE = f'[{IMAGES}.registry]\nconfig_path = "DIR"\n'
PROXY = '[proxy_plugins.lazy]\ntype = "snapshot"\naddress = "/run/containerd-stargz-grpc/c.sock"\n'
KEYS = {"one": bytes(32), "two": bytes(32), "other": bytes(range(32))}
NO_PROBLEMS = set[tuple[str, str]]()
TWO = f'[{IMAGES}.registry]\nconfig_path = "DIR:/etc/docker/certs.d"\n'


def check(configuration: Configuration, version: ContainerdVersion) -> list[CheckResult]:
    return list(check_configuration(configuration, registry_settings(configuration, version)))


def problems(results: list[CheckResult]) -> set[tuple[str, str]]:
    return {(each.level.value, each.about) for each in results if each.level is not Level.OK}


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        (f"version = 3\n{ONE}", (2, 0), NO_PROBLEMS),
        (f"version = 3\n{ONE}", (2, 2), NO_PROBLEMS),
        ("version = 3\n", (2, 1), {("fail", "config_path")}),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = "DIR"\n', (2, 1), NO_PROBLEMS),
        (f'version = 3\n[{CRI}.registry]\nconfig_path = "DIR"\n', (2, 1), {("fail", "config_path")}),
        # Several directories: the CRI plug-in supports them, the transfer service does not.
        (f"version = 3\n{TWO}", (2, 0), NO_PROBLEMS),
        (f"version = 3\n{TWO}", (2, 1), {("fail", "transfer service")}),
        (f"version = 3\n{TWO}[{IMAGES}]\nuse_local_image_pull = true\n", (2, 1), NO_PROBLEMS),
        (
            f"version = 3\n{ONE}[{IMAGES}]\ndiscard_unpacked_layers = true\n",
            (2, 2),
            {("fail", "discard_unpacked_layers")},
        ),
        (
            f'version = 3\n{ONE}[{IMAGES}.registry.mirrors."docker.io"]\nendpoint = ["http://10.0.0.9"]\n',
            (2, 0),
            {("fail", "mirrors")},
        ),
        (
            f'version = 3\n{ONE}[{IMAGES}.registry.configs."docker.io".tls]\nca_file = "/ca"\n',
            (2, 0),
            NO_PROBLEMS,  # 2.x has no such setting any more
        ),
        (f'version = 3\n{ONE}[{IMAGES}.registry.configs."docker.io".auth]\nusername = "me"\n', (2, 0), NO_PROBLEMS),
        (f'version = 3\nimports = ["gone/*.toml"]\n{ONE}', (2, 0), {("warn", "imports")}),
        (f'version = 4\nimports = ["/etc/containerd/conf.d/*.toml"]\n{ONE}', (2, 4), NO_PROBLEMS),
        (f'version = 3\n[{IMAGES}]\nsnapshotter = "native"\n{ONE}', (2, 1), NO_PROBLEMS),
        (f'version = 3\n[{IMAGES}]\nsnapshotter = "nydus"\n{ONE}', (2, 1), {("fail", "snapshotter")}),
        (f'version = 3\n[{IMAGES}]\nsnapshotter = "lazy"\n{ONE}{PROXY}', (2, 1), {("fail", "snapshotter")}),
        (f'version = 3\n[{IMAGES}]\nsnapshotter = "own"\n{ONE}', (2, 1), {("warn", "snapshotter")}),
        (
            f'version = 3\n{ONE}[{IMAGES}.runtime_platforms.kata]\nsnapshotter = "overlaybd"\n',
            (2, 1),
            {("warn", "snapshotter")},
        ),
        (f'version = 3\ndisabled_plugins = ["io.containerd.cri.v1.images"]\n{ONE}', (2, 0), {("warn", "CRI plug-in")}),
    ],
)
async def test_configurations_of_2_x(
    text: str, version: tuple[int, int], expected: set[tuple[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text.replace("DIR", str(tmp_path)))
    results = check(read_configuration(file, ContainerdVersion(*version)), ContainerdVersion(*version))
    assert problems(results) == expected
    assert all(bool(each.fix) is (each.level is not Level.OK) for each in results)


async def test_a_config_path_that_can_be_no_path_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'version = 2\n[{CRI}.registry]\nconfig_path = "a\\u0000b"\n')
    version = ContainerdVersion(1, 6)
    assert problems(check(read_configuration(file, version), version)) == {("fail", "config_path")}


async def test_the_default_configuration_of_2_2_uses_no_mirror() -> None:
    """The transfer service takes its two directories for one (containerd issue 12636)."""
    version = ContainerdVersion(2, 2)
    results = check(Configuration(), version)
    assert ("fail", "transfer service") in problems(results)
    fix = next(each.fix for each in results if each.level is Level.FAIL and each.about == "transfer service")
    assert fix.startswith('set config_path = "/etc/containerd/certs.d" in ')


async def test_an_import_that_replaces_the_setting_is_reported_with_both_files(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(f"version = 2\n[{CRI}]\nmax_concurrent_downloads = 7\n")
    file = tmp_path / "config.toml"
    file.write_text(f'imports = ["more.toml"]\nversion = 2\n[{CRI}.registry]\nconfig_path = "{tmp_path}"\n')
    results = check(read_configuration(file, ContainerdVersion(1, 6)), ContainerdVersion(1, 6))
    assert problems(results) == {("fail", "config_path"), ("warn", "imports")}
    what = next(each.what for each in results if each.about == "imports")
    assert str(tmp_path / "more.toml") in what
    assert f"in {file}" in what


OK, WARN, FAIL = ok("a", "b"), warn("a", "b", "c"), fail("a", "b", "c")


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ([OK, OK], "all is well: containerd uses the mirror"),
        ([OK, WARN], "nothing failed; 1 warning"),
        ([WARN, OK, WARN], "nothing failed; 2 warnings"),
        ([OK, FAIL], "1 failed, 0 warnings: fix what failed, starting with the first"),
        ([FAIL, WARN, FAIL], "2 failed, 1 warning: fix what failed, starting with the first"),
    ],
)
async def test_the_summary(results: list[CheckResult], line: str) -> None:
    assert summary(results) == line


@pytest.mark.parametrize("product", ["k3s", "rke2"])
async def test_for_a_directory_that_k3s_generates_the_fix_names_the_k3s_format(product: str, tmp_path: Path) -> None:
    """k3s would undo any other change at its next start."""
    folder = tmp_path / product / "agent/etc/containerd/certs.d"
    file = folder.parent / "config.toml"
    file.parent.mkdir(parents=True)
    missing: list[CheckResult] = []
    for settings in ("", f'[{IMAGES}.registry]\nconfig_path = "{folder}"\n'):
        file.write_text(f"version = 3\n{settings}")
        missing += [
            each
            for each in check(read_configuration(file, ContainerdVersion(2, 0)), ContainerdVersion(2, 0))
            if each.level is Level.FAIL
        ]
    folder.mkdir()
    nobody = list(
        check_hosts(
            registry_statuses([folder], MIRROR, ContainerdVersion(2, 0)),
            MIRROR,
            [folder],
            version=ContainerdVersion(2, 0),
            selection=Selection(),
            other_directories=[folder],
        )
    )
    fix = "run: peili hosts apply --format k3s, then restart k3s or RKE2"
    assert [(each.what, each.fix) for each in (*missing, *nobody)] == [
        ("not set, so containerd reads no hosts.toml and uses no mirror", fix),
        (f"the directory {folder} does not exist", fix),
        (f"none in {folder} leads to {MIRROR}", fix),
    ]


async def test_a_registry_of_the_mirror_without_a_hosts_toml(tmp_path: Path) -> None:
    HostsFiles(MIRROR, config_path=[tmp_path], registries=["docker.io"]).apply()
    statuses = registry_statuses([tmp_path], MIRROR, ContainerdVersion(2, 0))
    wanted = Selection(["docker.io", "ghcr.io", "*.example.com"])
    results = list(
        check_hosts(
            statuses, MIRROR, [tmp_path], version=ContainerdVersion(2, 0), selection=wanted, other_directories=()
        )
    )
    assert [(each.level, each.what) for each in results] == [
        (Level.OK, f"containerd uses {MIRROR} for docker.io"),
        (Level.FAIL, f"there is none for ghcr.io in {tmp_path}, so containerd does not use {MIRROR} for it"),
    ]


async def test_containerd_1_x_cannot_read_a_mirror_at_an_ipv6_address(tmp_path: Path) -> None:
    """test_diagnosis.py has the same with a real containerd."""
    mirror = "http://[::1]:5050"
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text(f'[host."{mirror}"]\ncapabilities = ["pull"]\n')
    levels = {
        version: [
            each.level
            for each in check_hosts(
                registry_statuses([tmp_path], mirror, version),
                mirror,
                [tmp_path],
                version=version,
                selection=Selection(),
                other_directories=(),
            )
        ]
        for version in (ContainerdVersion(1, 7), ContainerdVersion(2, 0))
    }
    assert levels == {ContainerdVersion(1, 7): [Level.FAIL], ContainerdVersion(2, 0): [Level.OK]}


@pytest.mark.parametrize(
    ("resolver", "applied_for", "what"),
    [
        ("defer", "defer", None),
        ("upstream", "upstream", None),
        ("chain", "peers", None),
        ("upstream", "defer", 'does not have the capability "resolve", so containerd asks it for no tag'),
        ("defer", "upstream", 'has the capability "resolve", but the resolver defer answers no tag'),
    ],
)
def test_the_capability_for_tags_fits_the_resolver(
    resolver: str, applied_for: str, what: str | None, tmp_path: Path
) -> None:
    """`peili hosts apply` writes what fits, also over what it wrote for another resolver."""
    for each in ("defer", "upstream", applied_for):
        options = [
            f"--set=resolver.kind={each}",
            "--config-path",
            str(tmp_path),
            "--containerd-version",
            "2.1.0",
            "--mirror",
            MIRROR,
        ]
        assert main(["hosts", "apply", *options]) == 0
    statuses = registry_statuses([tmp_path], MIRROR, ContainerdVersion(2, 1))
    found = list(check_tag_requests(statuses, MIRROR, [tmp_path], resolver))
    assert all(each.is_first for each in statuses)
    assert [each.level for each in found] == ([] if what is None else [Level.WARN])
    assert all(str(what) in each.what and "peili hosts apply" in each.fix for each in found)


async def test_the_mirror_is_recognised_by_its_url_as_k3s_writes_it(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text(f'[host]\n[host."{MIRROR}/v2"]\n  capabilities = ["pull"]\n')
    statuses = registry_statuses([tmp_path], MIRROR, ContainerdVersion(2, 0))
    [result] = check_hosts(
        statuses, MIRROR, [tmp_path], version=ContainerdVersion(2, 0), selection=Selection(), other_directories=()
    )
    assert (result.level, result.what) == (Level.OK, f"containerd uses {MIRROR} for every other registry")
    assert [each.is_first for each in statuses] == [True]
    proof = await request(statuses, 200, **{"Docker-Content-Digest": DIGEST})
    assert proof.what == f"{MIRROR} answers correctly for docker.io/library/demo:v1 ({DIGEST})"


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        ("containerd", None),
        ("containerd --log-level debug", None),
        ("containerd --config /c.toml", "/c.toml"),
        ("containerd -c /c.toml --log-level debug", "/c.toml"),
        ("containerd --root /r -config=/c.toml", "/c.toml"),
        ("containerd --config", None),
    ],
)
async def test_the_file_that_containerd_was_started_with(arguments: str, config: str | None) -> None:
    assert config_argument(arguments.split(" ")) == config


MIRROR = "http://mirror:5050"
DIGEST = Digest.of(b"manifest")
HERE = [(Reference.parse("docker.io/library/demo:v1"), Descriptor("application/json", DIGEST, 8))]


@pytest.fixture
def hosts(tmp_path: Path) -> list[RegistryStatus]:
    files = HostsFiles(MIRROR, config_path=[tmp_path])
    assert files.apply().changes
    return files.show()


async def request(statuses: Sequence[RegistryStatus], status: int, **headers: str) -> CheckResult:
    """Return the result for a mirror that answers with this status and these headers."""

    async def answer(request: Request) -> Response:
        assert request.url.path == f"/v2/library/demo/manifests/{DIGEST}"
        assert request.query_params["ns"] == "docker.io"
        return Response(status_code=status, headers=headers)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["HEAD"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        return await check_request(http, MIRROR, statuses, HERE)


async def test_the_request_is_like_containerds_and_the_digest_must_be_right(hosts: Sequence[RegistryStatus]) -> None:
    header = "Docker-Content-Digest"
    assert (await request(hosts, 200, **{header: DIGEST})).level is Level.OK
    assert "answers with digest sha256:0 for" in (await request(hosts, 200, **{header: "sha256:0"})).what
    assert "answers with digest None" in (await request(hosts, 200)).what
    assert "answers 503" in (await request(hosts, 503)).what


@pytest.mark.parametrize("is_checked", [True, False])
async def test_a_request_without_rights_for_a_covered_image_is_tried(is_checked: bool) -> None:
    async with running(rights={} if is_checked else None) as host, client_for(host.mirror.local) as client:
        image = (Reference(host.registry.name, "team/app", "v1"), host.image)
        result = await check_rights(client, "http://localhost", [image])
        if is_checked:
            assert (result.level, "is answered 401" in result.what) == (Level.OK, True)
        else:
            assert (result.level, "is given to a request without rights" in result.what) == (Level.WARN, True)
        assert (await check_rights(client, "http://localhost", [])).level is Level.OK


@pytest.mark.parametrize(
    ("registry", "setting", "is_warned"),
    [
        ("registry.corp", 'header = { Authorization = "Basic secret" }', True),
        ("registry.corp", 'client = "/etc/cert.pem"', True),
        ("_default", 'header = { X-Key = "secret" }', True),
        ("registry.corp", 'ca = "/etc/ca.pem"', False),
        ("free.example", 'header = { X-Key = "secret" }', False),
    ],
)
def test_rights_that_everybody_has_by_hosts_toml_are_found(
    tmp_path: Path, registry: str, setting: str, is_warned: bool
) -> None:
    (tmp_path / registry).mkdir()
    door = f'[host."{MIRROR}"]\ncapabilities = ["pull"]\nclient = "/etc/door.pem"\n'
    (tmp_path / registry / "hosts.toml").write_text(f'{door}[host."https://cache.corp"]\n{setting}\n')
    statuses = registry_statuses([tmp_path], MIRROR, ContainerdVersion(2, 0))
    found = list(check_credentials(MIRROR, statuses, PullRights(["registry.corp/team/*"])))
    assert [each.level for each in found] == [Level.WARN] * is_warned
    assert all("https://cache.corp" in each.what and "secret" not in each.what for each in found)
    assert not list(check_credentials(MIRROR, statuses, PullRights()))


@pytest.fixture
async def hung() -> AsyncGenerator[str]:
    async with stream_server(silent) as port:
        yield f"http://127.0.0.1:{port}"


async def test_a_hung_peili_is_distinguished_from_a_missing_one(hung: str) -> None:
    async with plain_client(timeout=httpx.Timeout(30, read=0.2)) as http:
        status, result = await check_local_door(http, hung)
    assert status is None
    assert result.level is Level.FAIL
    assert "accepts connections, but does not answer" in result.what


@pytest.mark.parametrize(
    "document", [[], {"name": "x"}, None, {"identity": 7}, {"identity": "x", "urls": 3}, {"identity": "x", "ready": []}]
)
async def test_an_invalid_status_is_not_from_peili(document: object) -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse(document)

    app = Starlette(routes=[Route("/status", answer)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        status, result = await check_local_door(http, "http://host")
    assert (status, result.level) == (None, Level.FAIL)


@pytest.mark.parametrize(
    "error", [httpx.DecodingError("no gzip"), httpx.InvalidURL("no host"), UnicodeError("no name")]
)
async def test_an_answer_that_can_not_be_read_is_not_from_peili(error: Exception) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        status, result = await check_local_door(http, "http://host")
    assert (status, result.level, result.what) == (None, Level.FAIL, f"nothing answers at http://host ({error})")


@pytest.mark.parametrize(
    ("door", "what"),
    [
        (200, "peili this-host answers at http://host:5050"),
        (503, "what answers at http://host:5050 is not peili (status 503 for /v2/)"),
        (None, "nothing answers at http://host:5050 (refused)"),
    ],
)
async def test_the_status_may_have_an_address_of_its_own(door: int | None, what: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.port == 5052 and request.url.path == "/status":
            return httpx.Response(200, json={"identity": "this-host"})
        if door is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(door if request.url.path == "/v2/" else 404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        status, result = await check_local_door(http, "http://host:5050", "http://host:5052")
        assert result.what == what
        assert (status is not None) == (door == 200) == (result.level is Level.OK)
        status, result = await check_local_door(http, "http://host:5052")
        assert status is not None
        status, result = await check_local_door(http, "http://host:5050", "http://host:5053")
        assert (status, result.level) == (None, Level.FAIL)


@pytest.mark.parametrize("version", [(1, 6), (1, 7)])
async def test_a_file_of_containerd_1_x_without_its_version_is_ignored_in_part(
    version: tuple[int, int], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[{CRI}.registry]\nconfig_path = "{tmp_path}"\n')
    [failed] = [
        each
        for each in check(read_configuration(file, ContainerdVersion(*version)), ContainerdVersion(*version))
        if each.level is not Level.OK
    ]
    what = f"{file} has no version = 2, so containerd ignores [{CRI}] in it"
    assert failed == fail("config_path", what, f"set version = 2 at the beginning of {file}, then restart containerd")
    file.write_text(f"version = 2\n{file.read_text()}")
    results = check(read_configuration(file, ContainerdVersion(*version)), ContainerdVersion(*version))
    assert problems(results) == NO_PROBLEMS


@pytest.mark.parametrize(("index", "version"), [(0, (2, 0)), (0, (2, 2)), (1, (1, 6)), (1, (1, 7))])
async def test_the_guide_sets_config_path_in_a_way_that_containerd_reads(
    index: int, version: tuple[int, int], tmp_path: Path
) -> None:
    guide = (Path(__file__).parents[4] / "docs/containerd.md").read_text(encoding="utf-8")
    block = [each for each in guide.split("```toml\n")[1:] if "config_path" in each][index].partition("```")[0]
    file = tmp_path / "config.toml"
    file.write_text(block.replace("/etc/containerd/certs.d", str(tmp_path)))
    results = check(read_configuration(file, ContainerdVersion(*version)), ContainerdVersion(*version))
    assert ok("config_path", str(tmp_path)) in results
    assert problems(results) == NO_PROBLEMS


@pytest.mark.parametrize(("user", "advice"), [(0, ""), (1000, "run as root, or ")])
async def test_root_is_not_told_to_run_as_root(user: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert InvalidConfiguration("reason").fix.startswith(f"{advice}give --containerd-config FILE")


async def test_parts_that_are_not_ready_are_named() -> None:
    result = check_readiness(MirrorStatus("me", ready={"store": False, "router": True}))
    assert (result.level, result.what) == (Level.FAIL, "not ready: store")


async def test_a_peer_door_of_another_server_and_a_missing_one(hung: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"Peili-Id": "another"})

    app = Starlette(routes=[Route("/v2/", answer, methods=["HEAD"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        results = [each async for each in check_peer_door(http, MirrorStatus("me", ["http://host"]), is_closed=False)]
    assert [(each.level, each.what) for each in results] == [(Level.FAIL, "another answers at http://host")]
    async with plain_client(timeout=httpx.Timeout(30, read=0.2)) as http:
        results = [each async for each in check_peer_door(http, MirrorStatus("me", [hung]), is_closed=False)]
        assert results[0].what == f"nothing answers at {hung}, the URL that peers use"
        results = [each async for each in check_peer_door(http, MirrorStatus("me"), is_closed=False)]
        assert results[0].level is Level.WARN


async def test_a_peer_door_is_trusted_by_the_systems_certificate_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers do the same. With the authorities of httpx, the doctor could only see that the door accepts connections."""
    node = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(node.ca))  # where OpenSSL finds the system's authorities
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(node.cert, node.key)
    mirror = Mirror(MemoryStore(), MemoryRouter(), identity=Peer("me", ("https://127.0.0.1:1",)))
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0", peer_ssl=tls) as serving:
        status = MirrorStatus("me", [f"https://{serving.peer_addresses[0]}"])
        async with make_client(status.urls) as http:
            [results] = [each async for each in check_peer_door(http, status, is_closed=False)]
    assert results == ok("peer door", f"this peili answers at {status.urls[0]}")


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 seconds"), (300, "5 minutes"), (9000, "2 hours"), (9e5, "10 days")]
)
async def test_the_time_since_the_last_request_is_written_in_words(seconds: float, words: str) -> None:
    status = MirrorStatus("me", runtime={"containerd": {"requests": 4, "last": 1e9 - seconds}})
    assert check_containerd_requests(status, 1e9).what == f"containerd has sent 4 requests, the last {words} ago"


async def test_a_peer_that_admits_nobody_and_one_whose_url_has_a_wrong_path_are_named() -> None:
    def refuse(_: HTTPConnection) -> bool:
        return False

    closed = Mirror(MemoryStore(), MemoryRouter(), auth=refuse, identity=Peer("closed", ()))
    other = Mirror(MemoryStore(), MemoryRouter(), insecure=True, identity=Peer("other", ()))
    local = "127.0.0.1:0"
    async with (
        closed,
        other,
        serve(closed, local=local, peer=local) as one,
        serve(other, local=local, peer=local) as two,
    ):
        refusing, wrong = f"http://{one.peer_addresses[0]}", f"http://{two.peer_addresses[0]}/peili"
        peers = [{"id": "closed", "urls": [refusing]}, {"id": wrong, "urls": [wrong]}]
        async with make_client([refusing, wrong]) as http:
            results = [each async for each in check_peers(http, MirrorStatus("me", peers=peers), 0)]
            [own] = [each async for each in check_peer_door(http, MirrorStatus("other", [wrong]), is_closed=False)]
    assert results == [
        warn(
            "peers",
            f"1 of 2 answer 403, so their peer doors are closed to this host: closed at {refusing}",
            "set peer.shared_key_file to the same key on all hosts",
        ),
        warn(
            "peers",
            f"1 of 2 answer 404, so the path of their URL is wrong: {wrong}",
            "set peer.advertise on them, or the URL in the router",
        ),
    ]
    assert own == fail(
        "peer door",
        f"other answers 404 for {wrong}/v2/, so peers find nothing there",
        "set peer.advertise to the URL of the peer door; it has a path only if the door is mounted there",
    )


async def test_the_doctor_asks_peer_doors_with_the_shared_key(tmp_path: Path) -> None:
    one_keys, two_keys, other_keys = (host_keys(tmp_path, name, key) for name, key in KEYS.items())
    async with tls_host(one_keys) as one, tls_host(two_keys) as two, tls_host(other_keys) as other:
        peers = [{"id": each.mirror.identity.id, "urls": list(each.mirror.identity.urls)} for each in (two, other)]
        status = MirrorStatus("one", one.mirror.identity.urls, peers=peers)
        async with make_peer_client(one_keys) as client:
            [result] = [each async for each in check_peer_door(client, status, is_closed=False)]
            assert result == ok("peer door", f"this peili answers at {one.url}")
            [problem] = [each async for each in check_peers(client, status, 0)]
            assert problem.what.startswith("other is known, but does not answer, and was never seen: ")
            fix = f"start peili there, or open its port: {other.url}; it needs the same key, or a certificate of "
            assert problem.fix == f"{fix}the same authority"
        async with make_peer_client(other_keys) as client:
            [result] = [each async for each in check_peer_door(client, status, is_closed=False)]
            assert result.level is Level.FAIL
            assert "no peili with the right certificate answers" in str(result)
