"""The Kubernetes router against a server that answers as a real one does in rare cases, and as none should.

tests/kubernetes has the tests with a real API server.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.kubernetes.pods import endpoint, endpoint_slice
from tests.support.logs import warnings
from tests.support.neighbours import entered, peer_ids, served
from tests.support.waiting import until

from peili.mirror import ConfigError, Limits, Peer
from peili.routers.kubernetes import KubernetesRouter
from peili.routers.kubernetes.router import KubernetesOptions
from peili.routers.kubernetes.slices import peers_of, read_slice
from peili.routers.member_urls import MemberUrls

pytestmark = pytest.mark.anyio
SOON = Limits(lookup_timeout=20, backoff_min=0.05, backoff_max=0.05)
PATH = "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices"
GONE = {"kind": "Status", "code": 410, "message": "too old resource version: 1 (7)"}


def one_slice(name: str, pod: str, version: str = "5") -> dict[str, Any]:
    item = endpoint_slice(name, endpoint(pod, "10.0.0.1"))
    return {**item, "metadata": {**item["metadata"], "resourceVersion": version}}


def listing(*items: Mapping[str, Any], more: str = "") -> Response:
    return JSONResponse({"metadata": {"resourceVersion": "4", "continue": more}, "items": items})


class Scripted:
    """An API server that gives prepared answers, one after the other. The last watch never ends."""

    def __init__(self, *answers: Response) -> None:
        self.requests: list[dict[str, str]] = []
        self._answers = iter(answers)

    async def answer(self, request: Request) -> Response:
        self.requests.append(dict(request.query_params))
        if (answer := next(self._answers, None)) is not None:
            return answer
        return StreamingResponse(endless())

    @asynccontextmanager
    async def router(self, **options: Any) -> AsyncGenerator[KubernetesRouter]:
        app = Starlette(routes=[Route(PATH, self.answer)])
        async with served(app) as url:
            router = KubernetesRouter.from_config({"api_server": url, "namespace": "ns", **options})
            async with entered(router, limits=SOON):
                yield router


async def endless() -> AsyncGenerator[str]:
    yield "\n"
    await asyncio.Event().wait()


def watch(*events: tuple[str, Mapping[str, Any]], tail: str = "\n") -> Response:
    lines = [json.dumps({"type": kind, "object": item}) for kind, item in events]
    return PlainTextResponse("\n".join(lines) + tail)


async def test_a_list_comes_in_pages() -> None:
    server = Scripted(listing(one_slice("one", "a"), more="next"), listing(one_slice("two", "b")))
    async with server.router() as router:
        await until(lambda: peer_ids(router) == ["a", "b"])
        await until(lambda: len(server.requests) == 3)
    assert [each.get("continue") for each in server.requests] == [None, "next", None]
    assert server.requests[2]["resourceVersion"] == "4"
    assert {each["labelSelector"] for each in server.requests} == {"kubernetes.io/service-name=peili"}


async def test_a_page_that_is_gone_begins_the_list_again() -> None:
    server = Scripted(
        listing(one_slice("one", "a"), more="next"), JSONResponse(GONE, 410), listing(one_slice("two", "b"))
    )
    async with server.router() as router:
        await until(lambda: peer_ids(router) == ["b"])


async def test_a_bookmark_moves_the_version_without_a_change(caplog: pytest.LogCaptureFixture) -> None:
    bookmark = {"kind": "EndpointSlice", "metadata": {"resourceVersion": "9"}}
    server = Scripted(listing(one_slice("one", "a")), watch(("BOOKMARK", bookmark)))
    async with server.router() as router:
        await until(lambda: len(server.requests) == 3)
        assert peer_ids(router) == ["a"]
    assert [each.get("resourceVersion") for each in server.requests] == [None, "4", "9"]
    assert server.requests[1]["allowWatchBookmarks"] == "true"
    assert warnings(caplog) == []


@pytest.mark.parametrize("gone", [watch(("ERROR", GONE)), JSONResponse(GONE, 410)], ids=["as an event", "as an answer"])
async def test_a_version_that_is_gone_lets_the_slices_be_listed_again(
    gone: Response, caplog: pytest.LogCaptureFixture
) -> None:
    server = Scripted(listing(one_slice("one", "a")), gone, listing(one_slice("two", "b")))
    async with server.router() as router:
        await until(lambda: peer_ids(router) == ["b"])
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (PlainTextResponse("<html>", 502), f"it answers 502: {PATH} was not found"),
        (JSONResponse({"message": "try\nlater"}, 429), "it answers 429: try later"),
        (watch(tail="{\n"), "an answer is not JSON"),
        (watch(tail="[]\n"), "an answer has something else where an object is expected"),
        (watch(("MODIFIED", {"metadata": {}})), "an event has no resourceVersion"),
        (watch(("ADDED", {"metadata": {"resourceVersion": "5"}})), "an object has no name"),
        (watch(("ERROR", {"code": 500, "message": "etcd is away"})), "it answers 500: etcd is away"),
    ],
)
async def test_a_failed_watch_is_reported_once_and_continued(
    answer: Response, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    change = watch(("MODIFIED", one_slice("one", "b")))
    server = Scripted(listing(one_slice("one", "a")), answer, answer, change)
    async with server.router() as router:
        await until(lambda: peer_ids(router) == ["b"])
    assert warnings(caplog) == [f"the API server can't be asked, the last known members stay: {problem}"]


async def test_a_server_that_lists_something_else_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    server = Scripted(JSONResponse({"items": {"a": 1}}), JSONResponse({"items": []}), listing(one_slice("one", "a")))
    async with server.router() as router:
        await until(lambda: peer_ids(router) == ["a"])
    kinds = [each.rpartition(" where ")[2] for each in warnings(caplog)]
    assert kinds == ["a list is expected", "an object is expected"]


def test_only_usable_endpoints_are_read() -> None:
    item = endpoint_slice(
        "one",
        endpoint("plain", "10.0.0.1", conditions={}),
        endpoint("ending", "10.0.0.2", conditions={"ready": False, "serving": True, "terminating": True}),
        endpoint("not-serving", "10.0.0.3", conditions={"ready": True, "serving": False}),
        endpoint("old-not-ready", "10.0.0.4", conditions={"ready": False}),
        endpoint("no-address"),
        endpoint("a-name", "host.example"),
    )
    assert [each.name for each in read_slice(item, None)] == ["plain", "ending"]
    assert read_slice({**item, "addressType": "FQDN"}, None) == ()
    assert read_slice({"addressType": "IPv4", "endpoints": [1, None]}, 5051) == ()


@pytest.mark.parametrize(
    ("ports", "option", "port"),
    [
        ([{"name": "metrics", "port": 1}, {"name": "peer", "port": 2}], None, 2),
        ([{"name": "http", "port": 3}], None, 3),
        ([{"name": "a", "port": 1}, {"name": "b", "port": 2}], None, None),
        ([{"name": "peer", "port": 1, "protocol": "UDP"}, {"name": "http", "port": 2}], None, 2),
        ([{"name": "peer", "port": 2}], 4, 4),
        ([], 4, 4),
        ([], None, None),
        (None, None, None),
    ],
)
def test_the_port_is_the_one_named_peer_or_the_only_one_or_the_option(
    ports: Iterable[Any] | None, option: int | None, port: int | None
) -> None:
    item = {**endpoint_slice("one", endpoint("a", "10.0.0.1")), "ports": ports}
    assert [each.port for each in read_slice(item, option)] == ([] if port is None else [port])


def test_an_old_pod_and_its_successor_on_the_same_node_are_one_peer() -> None:
    item = endpoint_slice("one", *(endpoint(each, "10.0.0.1", nodeName="node") for each in ("old", "new")))
    assert peers_of(read_slice(item, None), MemberUrls(), {}) == [
        Peer("node", ("http://10.0.0.1:5051",), labels={"node": "node"})
    ]


def test_without_a_pod_the_address_identifies_a_member() -> None:
    item = endpoint_slice("one", {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]})
    assert [peer.id for peer in peers_of(read_slice(item, None), MemberUrls(), {})] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [("10.96.0.1", "443", "https://10.96.0.1:443"), ("fd00::1", "6443", "https://[fd00::1]:6443")],
)
def test_the_api_server_is_the_one_that_the_pod_knows(host: str, port: str, url: str) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    assert KubernetesOptions.from_config({}, environ).api_server == url


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"api_server": "10.0.0.1"}, "api_server: the URL of the API server, such as https://10.96.0.1:443"),
        ({"service": "Peili"}, "service: the name of a service, not 'Peili'"),
        ({"namespace": "a/b"}, "namespace: the name of a namespace, not 'a/b'"),
        ({"zone_label": "a b"}, "zone_label: the name of a label, such as topology.kubernetes.io/zone, not 'a b'"),
        ({"credentials": "here"}, "credentials: an absolute path, not 'here'"),
        ({"port": "peer"}, "port: a port from 1 to 65535, not 'peer'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(expected)):
        KubernetesOptions.from_config({"api_server": "https://10.0.0.1", **options}, {})


def test_outside_of_a_pod_the_api_server_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="this process does not run in a pod"):
        KubernetesRouter.from_config({})
