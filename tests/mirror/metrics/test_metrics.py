"""What a mirror counts. A real registry collects it, and its text is parsed as Prometheus does."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse
from tests.mirror.doors.in_memory_host import client_for, in_memory_host
from tests.mirror.doors.served_host import ZEROS_PATH, open_request, served_host
from tests.mirror.relay.peers import honest, peers, short_after, wrong_bytes
from tests.mirror.relay.pulling import LARGE, content, pulling
from tests.support.plain_http import plain_client
from tests.support.stream_server import silent, stream_server
from tests.support.waiting import WAIT, until
from typing_extensions import override

from peili.mirror import Collector, Digest, Limits, Mirror, Peer, PushRouter, Reference, serve
from peili.mirror.testing import make_layout
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio


class Scrape:
    """Return what a registry collects."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(parse(text))

    def __call__(self, name: str, **labels: str) -> float:
        """The sample of `name` with exactly these labels; 0 where there is none."""
        samples = [each for family in self.families for each in family.samples]
        return next((each.value for each in samples if (each.name, each.labels) == (name, labels)), 0)

    def has(self, name: str) -> bool:
        return any(each.name == name for family in self.families for each in family.samples)


def scrape(collector: Mirror | Collector) -> Scrape:
    registry = CollectorRegistry()
    registry.register(collector)
    return Scrape(generate_latest(registry).decode())


@asynccontextmanager
async def two_hosts() -> AsyncGenerator[tuple[Mirror, Mirror, MemoryStore, str]]:
    """Yield a mirror that pulls, one that has content, the store of the second, and the URL of the first."""
    network, store = MemoryNetwork(), MemoryStore()
    one, two = Mirror(MemoryStore(), MemoryRouter(network)), Mirror(store, MemoryRouter(network))
    async with AsyncExitStack() as stack:
        for mirror in (one, two):
            await stack.enter_async_context(mirror)
        serving = await stack.enter_async_context(serve(one, local="127.0.0.1:0", peer="127.0.0.1:0"))
        await stack.enter_async_context(serve(two, local="127.0.0.1:0", peer="127.0.0.1:0"))
        yield one, two, store, f"http://{serving.local_addresses[0]}"


def blob(digest: Digest) -> str:
    return f"/v2/registry.example/demo/blobs/{digest}"


async def test_bytes_are_counted_by_door_and_source_and_requests_by_result() -> None:
    async with two_hosts() as (one, two, store, url), plain_client(base_url=url) as runtime:
        added = store.add(content(2_000_000))
        await until(lambda: scrape(two)("peili_advertised_keys") == 1)
        assert len((await runtime.get(blob(added.digest))).content) == added.size
        assert (await runtime.get(blob(Digest.of(b"nobody has it")))).status_code == 404
        assert (await runtime.head("/v2/")).status_code == 200
        assert (await runtime.delete("/v2/")).status_code == 405
        ours, theirs = scrape(one), scrape(two)
    assert ours("peili_sent_bytes_total", door="local", source="peer") == added.size
    assert ours("peili_sent_bytes_total", door="local", source="store") == 0
    assert theirs("peili_sent_bytes_total", door="peer", source="store") == added.size
    for endpoint, method, status, source in [
        ("blobs", "GET", "200", "peer"),
        ("blobs", "GET", "404", ""),
        ("base", "HEAD", "200", ""),
        ("none", "other", "405", ""),
    ]:
        named = {"door": "local", "endpoint": endpoint, "method": method, "status": status, "source": source}
        assert ours("peili_requests_total", **named) == 1, named
    assert ours("peili_lookups_total", result="hit") == 1
    assert ours("peili_lookups_total", result="miss") == 1
    assert ours("peili_lookup_seconds_count") == 2
    assert ours("peili_lookup_seconds_bucket", le="+Inf") == 2
    assert ours("peili_cut_answers_total", door="local") == 0


async def test_content_of_the_store_is_counted_and_errors_and_lists_have_no_source() -> None:
    async with in_memory_host() as host, client_for(host.door("local")) as runtime:
        await runtime.get(host.blob_path)
        await runtime.head(host.blob_path)
        await runtime.get(host.blob_path, headers={"Range": "bytes=0-9"})
        await runtime.get("/v2/registry.example/demo/tags/list")
        await runtime.get("/v2/registry.example/demo/manifests/no-such-tag")
        seen = scrape(host.mirror)
    assert seen("peili_sent_bytes_total", door="local", source="store") == len(host.data) + 10
    named = {"door": "local", "endpoint": "tags", "method": "GET", "status": "200", "source": ""}
    assert seen("peili_requests_total", **named) == 1


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_bytes_from_a_file_are_counted_however_they_are_sent(door: str, tmp_path: Path) -> None:
    image = make_layout(tmp_path, layers=[9_000_000])
    mirror = Mirror(OciLayoutStore(image.path), MemoryRouter())
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving, plain_client() as client:
        address = serving.local_addresses[0] if door == "local" else serving.peer_addresses[0]
        await mirror.wait_ready(30)
        whole = await client.get(f"http://{address}{blob(image.layers[0].digest)}")
        assert len(whole.content) == image.layers[0].size
        part = await client.get(f"http://{address}{blob(image.layers[0].digest)}", headers={"Range": "bytes=0-199999"})
        assert len(part.content) == 200_000
        await until(lambda: scrape(mirror)("peili_sent_bytes_total", door=door, source="store") > image.layers[0].size)
        seen = scrape(mirror)
    assert seen("peili_sent_bytes_total", door=door, source="store") == image.layers[0].size + 200_000


async def test_refused_clients_and_router_requests_are_counted() -> None:
    store = MemoryStore()
    digest = store.add(b"content").digest
    async with Mirror(store, PushRouter()) as mirror:
        async with client_for(mirror.peer, "192.0.2.1") as stranger:
            assert (await stranger.get(blob(digest))).status_code == 403
        async with client_for(mirror.peer) as peer:
            assert (await peer.head(f"/_router/keys/{digest}")).status_code == 200
        seen = scrape(mirror)
    named = {"door": "peer", "source": ""}
    assert seen("peili_requests_total", endpoint="none", method="GET", status="403", **named) == 1
    assert seen("peili_requests_total", endpoint="router", method="HEAD", status="200", **named) == 1


async def test_the_last_client_is_known_and_unknown_names_create_no_series() -> None:
    before = time.time()
    async with in_memory_host() as host, client_for(host.door("local")) as runtime:
        assert scrape(host.mirror)("peili_runtime_requests_total", client="containerd") == 0
        for agent in ("containerd/v2.1.0", "curl/8", "x" * 1000, "", "Docker/27.0 go/1.22"):
            await runtime.get("/v2/", headers={"User-Agent": agent})
        seen = scrape(host.mirror)
    assert seen("peili_runtime_requests_total", client="containerd") == 1
    assert seen("peili_runtime_requests_total", client="docker") == 1
    assert seen("peili_runtime_requests_total", client="other") == 3
    assert before <= seen("peili_runtime_last_request_timestamp_seconds", client="containerd") <= time.time()


async def test_failing_peers_are_counted_by_reason_and_wrong_bytes_as_quarantines() -> None:
    data = content(LARGE)
    async with peers(data, short_after(1000), honest) as [a, b], pulling([a.holder, b.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
        seen = scrape(host.mirror)
        assert seen("peili_peer_failures_total", reason="broken") == 1
        assert seen("peili_quarantines_total") == 0
    async with peers(data, wrong_bytes) as [liar], pulling([liar.holder]) as host:
        assert not (await host.get(Digest.of(data))).whole
        seen = scrape(host.mirror)
        assert seen("peili_peer_failures_total", reason="wrong") == 1
        assert seen("peili_quarantines_total") == 1
        assert seen("peili_cut_answers_total", door="local") == 1


LIMITED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "path_length": ("local", {"path_length": 64}, {"url": f"/v2/{'x' * 70}"}),
    "header_count": ("local", {"header_count": 8}, {"url": "/v2/", "headers": {f"x-{n}": "1" for n in range(9)}}),
}


@pytest.mark.parametrize("limit", LIMITED)
async def test_a_request_that_reaches_a_limit_is_counted(limit: str) -> None:
    door, limits, request = LIMITED[limit]
    async with in_memory_host(limits=Limits(**limits)) as host, client_for(host.door(door)) as client:
        await client.get("/v2/")
        assert scrape(host.mirror)("peili_limited_total", limit=limit) == 0
        await client.get(**request)
        assert scrape(host.mirror)("peili_limited_total", limit=limit) == 1


@pytest.mark.parametrize("limit", ["uploads", "uploads_per_blob", "uploads_per_peer"])
async def test_a_peer_that_is_refused_for_too_many_uploads_is_counted(limit: str) -> None:
    limits: dict[str, Any] = {limit: 1, "drain_timeout": 0.1}
    async with served_host(limits=Limits(**limits)) as host, plain_client() as client:
        with open_request(host.address("peer"), ZEROS_PATH):
            await until(lambda: scrape(host.mirror)("peili_uploads") == 1)
            assert (await client.get(host.url("peer") + ZEROS_PATH)).status_code == 429
        await until(lambda: scrape(host.mirror)("peili_uploads") == 0)
        assert scrape(host.mirror)("peili_limited_total", limit=limit) == 1


async def test_a_reader_that_takes_too_long_is_counted() -> None:
    async with served_host(limits=Limits(reader_timeout=0.2)) as host:
        with open_request(host.address("local"), ZEROS_PATH):
            await until(lambda: scrape(host.mirror)("peili_limited_total", limit="reader_timeout") == 1)
        assert scrape(host.mirror)("peili_cut_answers_total", door="local") == 1


async def test_a_request_that_takes_too_long_is_counted() -> None:
    async with served_host(limits=Limits(header_timeout=0.2)) as host, AsyncExitStack() as stack:
        _, half = await asyncio.open_connection(*host.address("local").split(":"))
        stack.callback(half.close)
        half.write(b"GET /v2/ HT")
        await until(lambda: scrape(host.mirror)("peili_limited_total", limit="header_timeout") == 1)


async def test_a_drain_that_takes_too_long_is_counted() -> None:
    async with served_host() as host:
        with open_request(host.address("peer"), ZEROS_PATH):
            await until(lambda: scrape(host.mirror)("peili_uploads") == 1)
            await host.mirror.drain(0.01)
        assert scrape(host.mirror)("peili_limited_total", limit="drain_timeout") == 1


async def test_a_member_that_does_not_answer_in_time_is_counted() -> None:
    router = PushRouter()
    mirror = Mirror(MemoryStore(), router, limits=Limits(lookup_timeout=0.1))
    async with stream_server(silent) as port, mirror, client_for(mirror.local) as runtime:
        router.set([Peer("silent", (f"http://127.0.0.1:{port}",))])
        await until(lambda: scrape(mirror)("peili_peers") == 1)
        assert (await runtime.get(blob(Digest.of(b"x")))).status_code == 404
        seen = scrape(mirror)
    assert seen("peili_limited_total", limit="lookup_timeout") == 1
    assert seen("peili_peers") == 0


async def test_what_homes_answer_is_counted() -> None:
    async with AsyncExitStack() as stack:
        routers = [PushRouter(), PushRouter()]
        mirrors = [Mirror(MemoryStore(), each, identity=name) for each, name in zip(routers, "ab", strict=True)]
        for mirror in mirrors:
            await stack.enter_async_context(mirror)
        servings = [
            await stack.enter_async_context(serve(each, local="127.0.0.1:0", peer="127.0.0.1:0")) for each in mirrors
        ]
        members = [Peer(name, (f"http://{each.peer_addresses[0]}",)) for name, each in zip("ab", servings, strict=True)]
        for router in routers:
            router.set(members)
        runtime = await stack.enter_async_context(plain_client())
        async with asyncio.timeout(WAIT):
            while not sum(scrape(each)("peili_grants_total", answer="miss") for each in mirrors):
                url = f"http://{servings[0].local_addresses[0]}{blob(Digest.of(random.randbytes(8)))}"
                assert (await runtime.get(url)).status_code == 404


async def test_gauges_are_current_and_counters_survive_the_exit() -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    for _ in range(2):
        assert [scrape(mirror)("peili_ready", part=part) for part in ("store", "router", "resolver")] == [0, 0, 0]
        async with mirror, client_for(mirror.local) as runtime:
            assert [scrape(mirror)("peili_ready", part=part) for part in ("store", "router", "resolver")] == [1, 1, 1]
            await runtime.get("/v2/")
    assert scrape(mirror)("peili_runtime_requests_total", client="other") == 2


def check_names(text: str) -> None:
    """Return what ``promtool check metrics`` would report."""
    for family in parse(text):
        assert family.name.startswith(("peili_", "process_"))
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(each.name.endswith("_total") for each in family.samples)
        else:
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


async def test_the_ops_app_serves_both_formats_on_the_local_doors_address() -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        async with plain_client(base_url=f"http://{serving.local_addresses[0]}") as client:
            plain = await client.get("/metrics")
            assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            check_names(plain.text)
            assert 'peili_ready{part="store"} 1.0' in plain.text.splitlines()
            assert 'peili_build_info{python="' in plain.text
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            openmetrics = await client.get("/metrics", headers=accept)
            assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
            assert "# TYPE peili_requests counter\n" in openmetrics.text
            assert openmetrics.text.endswith("\n# EOF\n")
        async with plain_client(base_url=f"http://{serving.peer_addresses[0]}") as client:
            assert (await client.get("/metrics")).status_code == 404


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
async def test_promtool_finds_nothing_wrong_after_a_pull() -> None:
    data = content(LARGE)
    async with peers(data, honest) as [peer], pulling([peer.holder]) as host:
        await host.get(Digest.of(data))
        async with client_for(host.mirror.ops) as client:
            page = await client.get("/metrics")
    assert 'peili_request_duration_seconds_count{answer="peer",door="local",endpoint="blobs"} 1.0\n' in page.text
    assert "process_resident_memory_bytes " in page.text
    command = ["promtool", "check", "metrics"]
    checked = await asyncio.to_thread(
        subprocess.run, command, input=page.content, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, b"")


async def test_without_prometheus_client_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from peili.mirror import metrics  # noqa: PLC0415

    monkeypatch.delitem(sys.modules, "peili.mirror.metrics.prometheus", raising=False)
    monkeypatch.delattr(metrics, "prometheus", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    mirror = Mirror(MemoryStore(), MemoryRouter())
    async with client_for(mirror.ops) as client:
        answer = await client.get("/metrics")
    assert (answer.status_code, answer.text) == (501, "metrics need prometheus-client: pip install 'peili[command]'\n")
    with pytest.raises(ImportError, match=r"peili\[command\]"):
        mirror.collect()
    assert any(each.name == "peili_requests_total" for each in mirror.figures())


async def test_two_mirrors_share_a_registry_by_name_and_each_may_have_its_own() -> None:
    mirrors = {"blue": Mirror(MemoryStore(), MemoryRouter())}
    collector = Collector(mirrors)
    registry = CollectorRegistry()
    registry.register(collector)
    mirrors["green"] = Mirror(MemoryStore(), MemoryRouter())
    async with mirrors["green"], client_for(mirrors["green"].local) as runtime:
        await runtime.get("/v2/")
        text = generate_latest(registry).decode()
    check_names(text)
    seen = Scrape(text)
    assert seen("peili_ready", mirror="green", part="store") == 1
    assert seen("peili_runtime_requests_total", mirror="green", client="other") == 1
    assert seen.has("peili_peers")
    assert seen("peili_runtime_requests_total", mirror="blue", client="other") == 0
    own = [CollectorRegistry(), CollectorRegistry()]
    for each, mirror in zip(own, mirrors.values(), strict=True):
        each.register(mirror)
        with pytest.raises(ValueError, match="peili_requests"):
            each.register(Mirror(MemoryStore(), MemoryRouter()))
    assert Scrape(generate_latest(own[1]).decode())("peili_runtime_requests_total", client="other") == 1
    assert Scrape(generate_latest(own[0]).decode())("peili_runtime_requests_total", client="other") == 0


class OnItsLoop(MemoryRouter):
    """Records the thread of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.loops: set[asyncio.AbstractEventLoop] = set()

    @override
    def peers(self) -> Collection[Peer]:
        self.loops.add(asyncio.get_running_loop())
        return [Peer("a", ())]


async def test_a_registry_may_collect_in_any_thread_while_plug_ins_run_on_their_loop() -> None:
    router = OnItsLoop()
    mirror = Mirror(MemoryStore(), router)
    async with mirror:
        seen = await asyncio.to_thread(scrape, mirror)
        assert seen("peili_peers") == 1
        assert router.loops == {asyncio.get_running_loop()}
        # The host's loop stands still while it waits for the thread: the scrape ends, and says that nothing is ready.
        with ThreadPoolExecutor() as threads:
            seen = threads.submit(scrape, mirror).result()
        assert seen("peili_ready", part="store") == 0
        assert not seen.has("peili_peers")
        assert seen.has("peili_requests_total") or seen.has("peili_limited_total")


class Confused(MemoryRouter):
    """Fails to report its state."""

    @override
    def ready(self) -> bool:
        raise LookupError("out of order")

    @override
    def peers(self) -> Collection[Peer]:
        raise LookupError("out of order")


async def test_a_plug_in_that_fails_to_report_does_not_hide_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.tag(Reference("registry.example", "demo", "v1"), store.add(b"x"))
    mirror = Mirror(store, Confused())
    async with mirror, client_for(mirror.ops) as client:
        for _ in range(3):
            seen = Scrape((await client.get("/metrics")).text)
            assert [seen("peili_ready", part=part) for part in ("store", "router")] == [1, 0]
            assert (await client.get("/readyz")).json() == {"store": True, "router": False, "resolver": True}
    assert [each.getMessage() for each in caplog.records] == ["Confused failed to report whether it is ready"]
