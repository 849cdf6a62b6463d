"""The dashboard and the alert rules: promtool accepts them, and a Prometheus that scraped a real peili answers them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripts import grafana_dashboard
from tests.mirror.relay.pulling import path_of
from tests.support.plain_http import plain_client
from tests.support.ports import free_port

from peili.mirror import Digest, Mirror, Peer, Serving, serve
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

PACKAGING = Path(__file__).parents[2] / "packaging" / "grafana"
ALERTS = PACKAGING / "alerts.yaml"
DATA = bytes(3 << 20)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus, of Debian's package prometheus"),
]


@asynccontextmanager
async def hosts() -> AsyncGenerator[tuple[Serving, Serving]]:
    """Serve a host that has pulled `DATA` from another one, and has asked for something that nobody has."""
    there = MemoryStore()
    there.add(DATA)
    other = Mirror(there, StaticRouter([]), identity="node-b")
    async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0") as peer:
        mirror = Mirror(MemoryStore(), StaticRouter([Peer("node-b", (f"http://{peer.peer_addresses[0]}",))]))
        async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
            yield serving, peer


async def pull(serving: Serving) -> None:
    async with plain_client(base_url=f"http://{serving.local_addresses[0]}") as runtime, asyncio.timeout(60):
        while (await runtime.get(path_of(Digest.of(DATA)))).content != DATA:
            pass  # the other host did not answer in time
        assert (await runtime.get(path_of(Digest.of(b"nothing")))).status_code == 404


@asynccontextmanager
async def prometheus(directory: Path, targets: list[str]) -> AsyncGenerator[httpx.AsyncClient]:
    """Run Prometheus, which scrapes `targets` each second, and yield a client of its API."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "peili", "static_configs": [{"targets": targets}]}],
    }
    file, port = directory / "prometheus.yml", free_port()
    file.write_text(json.dumps(config))  # JSON is YAML
    flags = ("--config.file", str(file), "--storage.tsdb.path", str(directory / "data"))
    process = await asyncio.create_subprocess_exec(
        *("prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with plain_client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
            await until_ready(client)
            yield client
    finally:
        process.kill()
        await process.wait()


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until Prometheus has started. Until then, it refuses connections, or answers with 503."""
    async with asyncio.timeout(60):
        while True:
            with suppress(httpx.TransportError):
                if (await client.get(f"http://{client.base_url.netloc.decode()}/-/ready")).is_success:
                    return
            await asyncio.sleep(0.1)


async def query(client: httpx.AsyncClient, expression: str) -> list[Any]:
    answer = await client.get("/query", params={"query": expression})
    assert answer.status_code == 200, (expression, answer.text)
    result: list[Any] = answer.json()["data"]["result"]
    return result


async def until_scraped(client: httpx.AsyncClient, expression: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not await query(client, expression):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        error.add_note(expression)
        raise


def queries_of_dashboard() -> list[tuple[str, str]]:
    """The title and each query of each panel, with values for Grafana's variables."""
    document = json.loads((PACKAGING / "dashboard.json").read_text(encoding="utf-8"))
    values = {"$instance": ".*", "$__rate_interval": "30s", "$__range": "1m"}
    found: list[tuple[str, str]] = []
    for panel in document["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


MAY_BE_EMPTY = {"Limits that took effect"}


async def test_each_query_of_the_dashboard_and_of_the_alerts_works_on_a_real_prometheus(tmp_path: Path) -> None:
    async with hosts() as both:
        targets = [each.local_addresses[0] for each in both]
        async with prometheus(tmp_path, targets) as client:
            await until_scraped(client, "count(peili_build_info) == 2")
            await pull(both[0])
            await until_scraped(client, 'increase(peili_sent_bytes_total{door="local", source="peer"}[1m]) > 0')
            for title, expression in queries_of_dashboard():
                if title in MAY_BE_EMPTY:
                    await query(client, expression)
                else:  # a scrape that took too long leaves a gap
                    await until_scraped(client, expression)
            groups = (await client.get("/rules")).json()["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
            for rule in rules:
                await query(client, rule["query"])
            await until_scraped(client, 'ALERTS{alertname="PeiliNoPeers"}')  # node-b knows nobody


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_the_dashboard_is_what_the_script_writes() -> None:
    written = json.loads(grafana_dashboard.FILE.read_text(encoding="utf-8"))
    assert written == grafana_dashboard.dashboard(), "run: make docs"


def test_they_name_only_metrics_that_exist() -> None:
    known = {each.name for each in Mirror(MemoryStore(), StaticRouter([])).figures()}
    known |= {f"{name}_{suffix}" for name in known for suffix in ("bucket", "count", "sum")}
    text = ALERTS.read_text(encoding="utf-8") + json.dumps(grafana_dashboard.dashboard())
    assert set(re.findall(r"\bpeili_\w+", text)) <= known
