"""The rows of the table. Ours and the reference take turns, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.client import Client
from bench.processes import nginx, peili
from peili.mirror.testing.images import Image, make_layout

SIZE = 256 << 20
ROUNDS = 7
MISSES = 400
PEERS = 8
NAME = "registry.example/bench/blob:v1"


@dataclass(frozen=True)
class Row:
    """One line: our figure, the reference's, what they are to each other, and what DESIGN.md asks for."""

    what: str
    ours: str
    reference: str
    ratio: float | None
    spread: str
    budget: str


def bandwidth(what: str, budget: str, ours: Callable[[], float], reference: Callable[[], float]) -> Row:
    """`SIZE` bytes by each, in turns after one round that does not count."""
    for warm_up in (ours, reference):
        warm_up()
    pairs = [(ours(), reference()) for _ in range(ROUNDS)]
    ratios = sorted(theirs / own for own, theirs in pairs)
    own, theirs = (SIZE / statistics.median(times) / 1e6 for times in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f} … {ratios[-1]:.2f}"
    return Row(what, f"{own:.0f} MB/s", f"{theirs:.0f} MB/s", statistics.median(ratios), spread, budget)


def serve_and_relay(folder: Path) -> list[Row]:
    """A blob from the store, against nginx with sendfile; and through a second host, against nginx `proxy_pass`."""
    image = make_layout(folder / "layout", layers=[SIZE], tags=[NAME])
    blob = image.layers[0]
    path = f"/v2/bench/blob/blobs/{blob.digest}?ns=registry.example"
    with ExitStack() as stack:
        holder = stack.enter_context(peili("store.kind=oci-layout", f"store.path={image.path}", "router.kind=push"))[1]
        static = stack.enter_context(nginx(folder / "static", f"location / {{ root {image.path}; }}"))
        proxied = f"location / {{ proxy_pass http://127.0.0.1:{holder}; }}"
        proxy = stack.enter_context(nginx(folder / "proxy", proxied))
        peers = f'router.peers=["http://127.0.0.1:{holder}"]'
        relay = stack.enter_context(peili("store.kind=memory", "router.kind=static", peers))[0]
        served, by_nginx = _getter(stack, holder, path, blob.size), _getter(stack, static, _file(image), blob.size)
        relayed, by_proxy = _getter(stack, relay, path, blob.size), _getter(stack, proxy, path, blob.size)
        return [
            bandwidth("serve 256 MiB from the store / nginx, sendfile", "≥ 0.9", served, by_nginx),
            bandwidth("relay 256 MiB, verified / nginx proxy_pass", "≥ 1.3", relayed, by_proxy),
        ]


def misses() -> Row:
    """Blobs that none of eight peers has."""
    with ExitStack() as stack:
        ports = [stack.enter_context(peili("store.kind=memory", "router.kind=push"))[1] for _ in range(PEERS)]
        peers = ", ".join(f'"http://127.0.0.1:{port}"' for port in ports)
        local, _ = stack.enter_context(peili("store.kind=memory", "router.kind=static", f"router.peers=[{peers}]"))
        client = Client(local)
        stack.callback(client.close)
        paths = (f"/v2/bench/blob/blobs/sha256:{secrets.token_hex(32)}?ns=registry.example" for _ in range(MISSES))
        times = sorted(1000 * client.get(path, status=404) for path in paths)[:-1]
    median, p99 = statistics.median(times), times[len(times) * 99 // 100]
    return Row(
        "404 for a key that none of 8 live peers has",
        f"{median:.1f} ms",
        "",
        None,
        f"p99 {p99:.1f} ms",
        "≤ 10, p99 ≤ 30",
    )


def _file(image: Image) -> str:
    digest = image.layers[0].digest
    return f"/blobs/{digest.algorithm}/{digest.encoded}"


def _getter(stack: ExitStack, port: int, path: str, size: int) -> Callable[[], float]:
    client = Client(port)
    stack.callback(client.close)
    return lambda: client.get(path, status=200, size=size)
