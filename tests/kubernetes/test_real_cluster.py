"""The Kubernetes router, and the manifests in packaging/kubernetes, against a real API server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.kubernetes.pods import NODES, ServiceAccount, endpoint, endpoint_slice
from tests.kubernetes_programs import program
from tests.lab.api_server import HAS_KUBERNETES, ApiServer, api_server
from tests.lab.processes import run
from tests.support.certificates import Authority
from tests.support.logs import warnings
from tests.support.neighbours import entered, peer_ids
from tests.support.tcp_proxy import tcp_proxy
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Limits, Peer
from peili.mirror.testing import MembershipSubject, check_membership_router
from peili.routers.kubernetes import KubernetesRouter

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not HAS_KUBERNETES, reason="not built or installed: kube-apiserver, etcd"),
]
SOON = Limits(lookup_timeout=20, backoff_min=0.1, backoff_max=0.1)
NUMBERS = count(1)
PACKAGING = Path(__file__).parents[2] / "packaging/kubernetes"
_RELABELING = {
    "type": "object",
    "properties": {"sourceLabels": {"type": "array", "items": {"type": "string"}}, "targetLabel": {"type": "string"}},
}
_ENDPOINT = {
    "type": "object",
    "properties": {
        **{each: {"type": "string"} for each in ("port", "path", "interval")},
        "relabelings": {"type": "array", "items": _RELABELING},
    },
}
_SELECTOR = {
    "type": "object",
    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
}
_MONITOR = {
    "type": "object",
    "properties": {"selector": _SELECTOR, "endpoints": {"type": "array", "items": _ENDPOINT}},
}
SERVICE_MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {"kind": "ServiceMonitor", "plural": "servicemonitors"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _MONITOR}}},
            }
        ],
    },
}
"""The resource of the Prometheus operator, with the fields that the chart uses."""


@pytest.fixture(scope="module")
def api() -> Generator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def account(api: ApiServer, tmp_path: Path) -> ServiceAccount:
    """The service account of the pods, which may read EndpointSlices, in a namespace of its own."""
    account = ServiceAccount(api, f"test-{next(NUMBERS)}", tmp_path / "serviceaccount")
    account.allow_slices()
    return account


def router_for(api: ApiServer, account: ServiceAccount, **options: Any) -> KubernetesRouter:
    """Return the router of a pod with this service account."""
    return KubernetesRouter.from_config({"api_server": api.url, "credentials": str(account.folder), **options})


async def test_the_endpoints_are_the_members_and_changes_are_followed(
    api: ApiServer, account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    account.set(
        endpoint_slice("one", endpoint("a", "10.0.0.1", nodeName="node-a", zone="north"), endpoint("b", "10.0.0.2")),
        endpoint_slice("other", endpoint("x", "10.0.9.9"), service="another"),
    )
    async with entered(router := router_for(api, account)):
        await until(router.ready)
        assert list(router.peers()) == [
            Peer("b", ("http://10.0.0.2:5051",)),
            Peer("node-a", ("http://10.0.0.1:5051",), labels={"zone": "north", "node": "node-a"}),
        ]
        account.set(endpoint_slice("two", endpoint("c", "10.0.0.3", nodeName="node-c"), port=6000))
        await until(lambda: peer_ids(router) == ["b", "node-a", "node-c"])
        not_ready = {"ready": False, "serving": False, "terminating": False}
        account.set(endpoint_slice("one", endpoint("a", "10.0.0.1", conditions=not_ready), endpoint("b", "10.0.0.9")))
        await until(
            lambda: [peer.urls[0] for peer in router.peers()] == ["http://10.0.0.9:5051", "http://10.0.0.3:6000"]
        )
        account.delete("two")
        await until(lambda: peer_ids(router) == ["b"])
        account.delete("one")
        await until(lambda: not router.peers())
    assert warnings(caplog) == []


async def test_a_pod_with_addresses_of_both_families_is_one_peer(api: ApiServer, account: ServiceAccount) -> None:
    account.set(
        endpoint_slice("six", endpoint("a", "fd00::1", nodeName="node-a"), family="IPv6"),
        endpoint_slice("four", endpoint("a", "10.0.0.1", nodeName="node-a")),
    )
    async with entered(router := router_for(api, account, scheme="https", path="/peili", tls_name="peili.test")):
        await until(router.ready)
        urls = ("https://10.0.0.1:5051/peili", "https://[fd00::1]:5051/peili")
        assert list(router.peers()) == [Peer("node-a", urls, "peili.test", {"node": "node-a"})]


async def test_this_host_is_recognised_by_the_name_of_its_node(api: ApiServer, account: ServiceAccount) -> None:
    account.set(endpoint_slice("one", *(endpoint(each, f"10.0.0.{each}", nodeName=f"node-{each}") for each in "12")))
    async with entered(router := router_for(api, account), identity="node-1"):
        await until(router.ready)
        assert peer_ids(router) == ["node-2"]


async def test_a_service_without_endpoints_is_known(
    api: ApiServer, account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with entered(router := router_for(api, account, service="later")):
        await until(router.ready)
        assert list(router.peers()) == []
        account.set(endpoint_slice("one", endpoint("a", "10.0.0.1"), service="later"))
        await until(lambda: peer_ids(router) == ["a"])
    assert f"the Service later in the namespace {account.namespace} has no endpoints yet" in caplog.messages


async def test_zones_may_come_from_a_label_of_the_nodes(
    api: ApiServer, account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    for name, labels in (("zoned", {"example.com/room": "cellar"}), ("plain", {})):
        item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        api.apply("/api/v1/nodes", item)
    nodes = [
        endpoint("a", "10.0.0.1", nodeName="zoned", zone="north"),
        endpoint("b", "10.0.0.2", nodeName="plain", zone="south"),
    ]
    account.set(endpoint_slice("one", *nodes))

    def zones() -> list[str | None]:
        return [peer.labels.get("zone") for peer in sorted(router.peers(), key=lambda peer: peer.urls)]

    async with entered(router := router_for(api, account, zone_label="example.com/room")):
        await until(router.ready)
        assert zones() == ["north", "south"]
        [warning] = warnings(caplog)
        assert warning.startswith("the zones of the nodes are not known: it answers 403: nodes is forbidden")
        account.allow_nodes()
        account.set(endpoint_slice("one", *nodes, endpoint("c", "10.0.0.3", nodeName="gone")))
        await until(lambda: zones() == ["cellar", "south", None])


async def test_a_missing_role_is_named_once_and_then_not_needed_any_more(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    account = ServiceAccount(api, "without-role", tmp_path / "serviceaccount")
    account.set(endpoint_slice("one", endpoint("a", "10.0.0.1")))
    async with entered(router := router_for(api, account), limits=SOON):
        await until(lambda: warnings(caplog))
        await asyncio.sleep(0.5)  # more tries fail, and nothing is logged
        assert not router.ready()
        account.allow_slices()
        await until(lambda: peer_ids(router) == ["a"])
    [warning] = warnings(caplog)
    begin = "the API server can't be asked, the last known members stay: it answers 403: endpointslices"
    assert warning.startswith(begin)
    assert 'User "system:serviceaccount:without-role:peili" cannot list resource "endpointslices"' in warning


async def test_a_cut_watch_continues_with_the_token_of_that_moment(
    api: ApiServer, account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    async with tcp_proxy(urlsplit(api.url).port or 0) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        async with entered(router := router_for(api, account, api_server=url), limits=SOON):
            for name in ("a", "b"):  # the second one arrives by the watch
                account.set(endpoint_slice("one", endpoint(name, "10.0.0.1")))
                await until(lambda name=name: peer_ids(router) == [name])  # type: ignore[misc]  # bound early
            proxy.cut()
            account.set(endpoint_slice("one", endpoint("b", "10.0.0.2"), endpoint("c", "10.0.0.3")))
            await until(lambda: peer_ids(router) == ["b", "c"])
            assert warnings(caplog) == []
            account.write_token("expired")
            proxy.cut()
            await until(lambda: warnings(caplog))
            account.set(endpoint_slice("one", endpoint("d", "10.0.0.4")))
            assert peer_ids(router) == ["b", "c"]
            account.renew_token()
            await until(lambda: peer_ids(router) == ["d"])
    assert warnings(caplog) == [
        "the API server can't be asked, the last known members stay: it answers 401: Unauthorized"
    ]


async def test_what_changed_while_the_server_was_away_is_listed_again(
    api: ApiServer, account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    account.set(endpoint_slice("one", endpoint("a", "10.0.0.1")), endpoint_slice("two", endpoint("b", "10.0.0.2")))
    async with tcp_proxy(urlsplit(api.url).port or 0) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        async with entered(router := router_for(api, account, api_server=url), limits=SOON):
            await until(lambda: peer_ids(router) == ["a", "b"])
            proxy.refuse()
            proxy.cut()
            await until(lambda: warnings(caplog))
            account.delete("one")
            account.set(endpoint_slice("three", endpoint("c", "10.0.0.3")))
            api.forget_history()
            assert peer_ids(router) == ["a", "b"]
            await proxy.listen()
            await until(lambda: peer_ids(router) == ["b", "c"])
    assert [each for each in caplog.messages if "watched again: it answers 410" in each]
    [warning] = warnings(caplog)
    assert warning.startswith(f"the API server can't be asked, the last known members stay: {url}: ")


async def test_another_authority_is_not_trusted_until_its_certificate_is_there(
    api: ApiServer, account: ServiceAccount, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    account.set(endpoint_slice("one", endpoint("a", "10.0.0.1")))
    right = (account.folder / "ca.crt").read_bytes()
    (account.folder / "ca.crt").write_bytes(Authority(tmp_path / "other").cert.read_bytes())
    async with entered(router := router_for(api, account), limits=SOON):
        await until(lambda: warnings(caplog))
        assert not router.ready()
        (account.folder / "ca.crt").write_bytes(right)
        await until(lambda: peer_ids(router) == ["a"])
    assert "certificate verify failed" in warnings(caplog)[0]


class Relocated(KubernetesRouter):
    """A router with the URLs of the kit: the API server accepts no addresses on loopback."""

    urls: Mapping[str, tuple[str, ...]] = {}

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        async with aclosing(super().members()) as sets:
            async for peers in sets:
                yield [replace(peer, urls=self.urls[peer.id]) for peer in peers]


class KubernetesSubject(MembershipSubject):
    """An EndpointSlice, replaced at each change."""

    def __init__(self, api: ApiServer, account: ServiceAccount) -> None:
        self._service = f"kit-{next(NUMBERS)}"
        options = {"api_server": api.url, "credentials": str(account.folder), "service": self._service}
        # The other hosts of the kit are on loopback.
        self.router = self._relocated = Relocated.from_config({**options, "any_address": True})
        self._account = account

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        self._relocated.urls = {**self._relocated.urls, **{peer.id: peer.urls for peer in members}}
        endpoints = [endpoint(peer.id, f"10.0.0.{number}") for number, peer in enumerate(members, 1)]
        self._account.set(endpoint_slice(self._service, *endpoints, service=self._service))
        return True


async def test_the_router_conforms(api: ApiServer, account: ServiceAccount) -> None:
    @asynccontextmanager
    async def kubernetes_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
        subject = KubernetesSubject(api, account)
        await subject.set(members)
        yield subject

    await check_membership_router(kubernetes_router)


def kubectl(api: ApiServer, *arguments: str) -> str:
    """Run kubectl as the administrator of the cluster. Raises CommandFailed."""
    command = [program("kubectl"), f"--server={api.url}", f"--certificate-authority={api.ca}"]
    return run([*command, f"--token={api.token_file.read_text()}", *arguments]).decode()


def install(api: ApiServer, kind: str, namespace: str, directory: Path, *values: str) -> str:
    """Apply the manifests in the way of Kustomize or of Helm, first as a dry run of the server. Returns its lines."""
    api.create_namespace(namespace)
    if kind == "base":
        overlay = {"resources": [os.path.relpath(PACKAGING / "base", directory)], "namespace": namespace}
        (directory / "kustomization.yaml").write_text(json.dumps(overlay))
        source = ["-k", str(directory)]
    else:
        command = [program("helm"), "template", "peili", str(PACKAGING / "chart"), f"--namespace={namespace}"]
        flags = ["--kube-version=1.34.0", *(f"--set={each}" for each in values)]
        (directory / "all.yaml").write_bytes(run([*command, *flags]))
        source = ["-f", str(directory / "all.yaml")]
    dry_run = kubectl(api, "apply", "--server-side", "--dry-run=server", "--validate=strict", *source)
    kubectl(api, "apply", "--server-side", *source)
    return dry_run


@pytest.mark.parametrize("kind", ["base", "chart"])
async def test_the_manifests_are_accepted_and_let_the_router_work(
    kind: str, api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = install(api, kind, f"as-{kind}", tmp_path).splitlines()
    assert all(line.endswith(" serverside-applied (server dry run)") for line in lines)
    kinds = {line.partition("/")[0].partition(".")[0] for line in lines}
    assert kinds >= {"serviceaccount", "role", "rolebinding", "configmap", "service", "daemonset"}
    account = ServiceAccount(api, f"as-{kind}", tmp_path / "serviceaccount")
    account.wait_until_allowed(account.slices)
    account.set(endpoint_slice("one", endpoint("a", "10.0.0.1")))
    async with entered(router := router_for(api, account)):
        await until(lambda: peer_ids(router) == ["a"])
    assert warnings(caplog) == []


async def test_the_chart_with_zones_and_a_service_monitor_is_accepted(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", SERVICE_MONITORS)
    await until(lambda: api.admin.get("/apis/monitoring.coreos.com/v1/servicemonitors").is_success)
    room = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "roomy", "labels": {"example.com/room": "attic"}}}
    api.apply("/api/v1/nodes", room)
    values = ("zones.nodeLabel=example.com/room", "serviceMonitor.enabled=true", "key.value=peili-key-v1:abc")
    lines = install(api, "chart", "with-zones", tmp_path, *values).splitlines()
    assert "servicemonitor.monitoring.coreos.com/peili serverside-applied (server dry run)" in lines
    account = ServiceAccount(api, "with-zones", tmp_path / "serviceaccount")
    account.wait_until_allowed(account.slices, NODES)
    account.set(endpoint_slice("one", endpoint("a", "10.0.0.1", nodeName="roomy")))
    async with entered(router := router_for(api, account, zone_label="example.com/room")):
        await until(lambda: [peer.labels.get("zone") for peer in router.peers()] == ["attic"])
    assert warnings(caplog) == []
