"""The page of the ops app in a real browser: what it shows, narrow and wide, by keyboard and for screen readers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from tests.mirror.cold_start import COLD_LIMITS, Runtime, Upstream
from tests.mirror.membership.directory.cluster import are_synced, cluster
from tests.mirror.relay.pulling import content, manifest_with, path_of
from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Digest, Mirror, Peer, Reference, serve
from peili.mirror.limits import MIB
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, of Debian's package chromium"),
]
LAYER = bytes(6 << 20)

DRAWN = """
(() => {
  const chain = document.querySelector('#chains svg'), nodes = [...chain?.querySelectorAll('.node') ?? []];
  if (nodes.length < 4) return null;
  const box = (each) => each.querySelector('rect').getBoundingClientRect();
  return {
    label: chain.getAttribute('aria-label'),
    names: nodes.map((each) => each.querySelector('title').textContent),
    self: chain.querySelector('.node.self title').textContent,
    sides: nodes.map((each) => [box(each).left, box(each).right]),
    edges: chain.querySelectorAll('.edge.flows').length,
  };
})()
"""
CONTRAST = """
(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/\\d+/g).map((each) => each / 255)
      .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const node of document.querySelectorAll("h1,h2,p,td,th,dt,dd,small,button,label,li,caption,figcaption")) {
    if (!node.textContent.trim()) continue;
    const [one, two] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    if ((one + 0.05) / (two + 0.05) < 4.5) low.push(node.outerHTML.slice(0, 80));
  }
  return low;
})()
"""


@dataclass
class Shown:
    """A host whose page is open, with a runtime and a peer that has an image."""

    page: Browser
    runtime: httpx.AsyncClient
    mirror: Mirror
    url: str


@asynccontextmanager
async def shown(directory: Path) -> AsyncGenerator[Shown]:
    there = MemoryStore()
    there.add(LAYER)
    there.add(b"{}")
    there.tag(Reference("docker.io", "library/demo", "v1"), there.add(manifest_with(Digest.of(LAYER), len(LAYER))))
    other = Mirror(there, StaticRouter([]), identity="node-b")
    async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0") as peer:
        router = StaticRouter([Peer("node-b", (f"http://{peer.peer_addresses[0]}",))])
        mirror = Mirror(MemoryStore(), router, identity="node-a")
        async with mirror, serve(mirror, local="127.0.0.1:0", ops="127.0.0.1:0") as serving:
            url = f"http://{serving.ops_addresses[0]}/"
            async with (
                plain_client(base_url=f"http://{serving.local_addresses[0]}") as runtime,
                browser(directory) as page,
            ):
                await page.open(url)
                yield Shown(page, runtime, mirror, url)


async def test_the_page_shows_a_pull_and_tests_a_reference(tmp_path: Path) -> None:
    async with shown(tmp_path) as host:
        page = host.page
        await page.until("document.getElementById('state').textContent === 'Live; every part is ready'")
        assert await page.run("document.title") == "peili: node-a"
        await page.until("document.getElementById('peers').innerText.includes('node-b')")
        async with host.runtime.stream("GET", path_of(Digest.of(LAYER))) as response:
            await until(lambda: any(each.sent for each in host.mirror.metrics.active))
            await page.until("document.querySelector('#chains svg[role=img]') !== null")
            label = await page.run("document.querySelector('#chains svg[role=img]').getAttribute('aria-label')")
            assert label.endswith(f"{Digest.of(LAYER).encoded[:12]}: node-b to node-a")
            await page.until("document.querySelector('#transfers progress') !== null")
            await response.aread()
        await page.until("document.getElementById('chains').children.length === 0")
        await page.until("document.getElementById('tiles').innerText.includes('6.0 MiB')")
        await page.until("document.querySelectorAll('#chart rect').length > 0")
        assert "6.0 MiB from peers" in await page.run("document.getElementById('chart-text').textContent")
        await page.run("document.getElementById('day').click()")
        await page.until("document.getElementById('chart-text').textContent.startsWith('Last day: 6.0 MiB from peers')")
        await check_keyboard(page)
        await check_readers(page)
        await check_looks(page)
        check_traffic(host)


async def check_keyboard(page: Browser) -> None:
    """Everything can be reached and used by keyboard, and the focus is visible."""
    await page.run("document.getElementById('image').focus()")
    await page.call("Input.insertText", text="demo:v1")
    await page.press("Enter", 13, "\r")
    await page.until("document.querySelectorAll('#result tbody tr').length === 3")
    result = await page.run("document.getElementById('result').innerText")
    assert "node-b" in result
    assert "from peers: 3 parts" in result
    await page.press("Tab", 9)
    await page.press("Tab", 9)
    assert await page.run("document.activeElement.value") == "try"
    outline = await page.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.press("Enter", 13, "\r")
    await page.until("document.getElementById('result').innerText.includes('1.0 MiB from node-b')")
    await page.run("document.getElementById('image').value = 'no image'")
    await page.press("Enter", 13, "\r")
    await page.until("document.querySelector('#result .bad') !== null")
    await page.run("document.getElementById('list').focus()")
    await page.press("Enter", 13, "\r")
    await page.until("document.getElementById('images').innerText.includes('docker.io/library/demo:v1')")
    images = await page.run("document.getElementById('images').innerText")
    assert "0 images here, 1 image only on others" in images
    assert re.search(r"library/demo:v1\s+\w{12}\s+no\s+node-b", images)


async def check_readers(page: Browser) -> None:
    """Controls and regions have names, there is one main heading, and the state is announced."""
    tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    nodes = [each for each in tree if not each.get("ignored")]
    roles = [each["role"]["value"] for each in nodes]
    assert roles.count("main") == 1
    assert "status" in roles
    for each in nodes:
        if each["role"]["value"] in {"button", "textbox", "region", "image", "progressbar", "link", "figure"}:
            assert each["name"]["value"].strip(), each
    levels = await page.run("[...document.querySelectorAll('h1,h2')].map((each) => each.tagName).join('')")
    assert levels == "H1" + "H2" * 8
    assert await page.run("document.documentElement.lang") == "en"


async def check_looks(page: Browser) -> None:
    """It fits on narrow and wide screens, and its text can be read in the light and in the dark."""
    grounds: set[str] = set()
    for scheme in ("light", "dark"):
        for width in (360, 1400):
            await page.show(width, scheme)
            assert await page.run("document.documentElement.scrollWidth") <= width
            assert await page.run(CONTRAST) == []
        grounds.add(await page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def check_traffic(host: Shown) -> None:
    """The page only asks its own host, only with GET, and causes no error."""
    requests = [each["request"] for each in host.page.named("Network.requestWillBeSent")]
    assert {each["method"] for each in requests} == {"GET"}
    assert all(each["url"].startswith(host.url) for each in requests if each["url"] != "about:blank")
    assert host.page.named("Runtime.exceptionThrown") == []
    problems = [each["entry"] for each in host.page.named("Log.entryAdded")]
    expected = [each for each in problems if "status of 400" in each["text"]]  # the name that is none
    assert problems == expected, json.dumps(problems)


async def test_the_page_draws_the_chain_of_a_cold_start_from_upstream_to_this_host(tmp_path: Path) -> None:
    blob = content(32 * MIB)
    digest = Digest.of(blob)
    async with cluster(4, limits=COLD_LIMITS) as hosts, browser(tmp_path) as page:
        *others, last = hosts
        await page.open(f"http://{last.serving.local_addresses[0]}/")
        await until(lambda: are_synced(hosts))
        upstream, is_seen, clock = Upstream(blob), asyncio.Event(), asyncio.get_running_loop().time
        began = clock()
        upstream.may_send = lambda start: is_seen.is_set() or start < MIB // 2 * (clock() - began)
        async with asyncio.TaskGroup() as pulls:
            for host in (*others, last):  # so that the last one is at the end of the chain
                runtime = Runtime(host, upstream)
                pulls.create_task(runtime.pull(digest, len(blob)))
                await until(lambda runtime=runtime: runtime.received[digest])  # type: ignore[misc]  # bound early
            drawn = await page.until(DRAWN)
            is_seen.set()
        names = drawn["names"]
        assert names[0] == "upstream"
        assert set(names[1:]) <= {each.name for each in hosts}
        assert drawn["label"].endswith(f": {' to '.join(names)}")
        assert drawn["self"] == last.name
        assert all(one[1] < other[0] for one, other in pairwise(drawn["sides"])), "side by side, in this order"
        assert drawn["edges"] == len(names) - 1
        await page.until("document.getElementById('transfers').innerText.includes('Nothing is in flight.')")


async def test_the_page_is_one_file_and_reloads_nothing_from_elsewhere() -> None:
    mirror = Mirror(MemoryStore(), StaticRouter([]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(mirror.ops), base_url="http://localhost") as client:
        answer = await client.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "src=" not in answer.text
    assert "@import" not in answer.text
