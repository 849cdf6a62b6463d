"""Spans of OpenTelemetry: a pull is one trace over two hosts. Without a set-up SDK, or without the package, nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PULL = """
import asyncio, json, sys
{setup}
import httpx
from tests.support.plain_http import plain_client
from peili.mirror import Digest, Mirror, Peer, serve
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

DATA = bytes(2_000_000)

async def main():
    there = MemoryStore()
    there.add(DATA)
    other = Mirror(there, StaticRouter([]), identity="node-b")
    any_port = "127.0.0.1:0"
    async with other, serve(other, local=any_port, peer=any_port) as peer:
        mirror = Mirror(MemoryStore(), StaticRouter([Peer("node-b", (f"http://{{peer.peer_addresses[0]}}",))]))
        async with mirror, serve(mirror, local=any_port) as serving, plain_client() as runtime:
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            url = f"http://{{serving.local_addresses[0]}}/v2/library/demo/blobs/{{Digest.of(DATA)}}?ns=docker.io"
            assert (await runtime.get(url, headers={{"traceparent": parent}})).content == DATA
    assert bool("opentelemetry.trace" in sys.modules) is {has_api}

asyncio.run(main())
{end}
"""
SDK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
SHOW = """
for span in exporter.get_finished_spans():
    print(json.dumps([span.name, f"{span.context.trace_id:032x}", dict(span.attributes)], default=list))
"""


def pull(setup: str, end: str, *, has_api: bool) -> str:
    """Pull a blob from a peer in a process of its own, because the SDK is set up for a whole process."""
    program = PULL.format(setup=setup, end=end, has_api=has_api)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=500, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pull_is_one_trace_over_all_hosts() -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk: pip install -e '.[test]'")
    spans = [json.loads(line) for line in pull(SDK, SHOW, has_api=True).splitlines()]
    blobs = {name: attributes for name, trace, attributes in spans if trace == "0af7651916cd43dd8448eb211c80319c"}
    local, peer = blobs["peili local GET blobs"], blobs["peili peer GET blobs"]
    assert (local["peili.answer"], local["peili.senders"], local["peili.bytes"]) == ("peer", ["node-b"], 2_000_000)
    assert local["peili.repository"] == "docker.io/library/demo"
    assert (peer["peili.answer"], peer["http.response.status_code"]) == ("store", 200)
    assert peer["peili.digest"] == local["peili.digest"]


def test_without_an_sdk_nothing_is_done_and_the_package_is_not_even_imported() -> None:
    assert pull("", "", has_api=False) == ""
    assert pull("import opentelemetry.trace", "", has_api=True) == ""
