"""Measures the relay of a large blob from a peer, against nginx with `proxy_pass`. Both use the same peili as peer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tests.support.certificates import make_certificate

from bench import budgets
from bench.clients import Clients, Target
from bench.measure import Row
from bench.mirrors import MEMORY_STORE, NO_PEERS, layout_store, peili, static_router
from bench.references import nginx_proxy
from bench.rows.bandwidth import Side, Task, bandwidth
from bench.setting import Setting, blob_path

GROUP = "relay"


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of a verified relay and of an unverified one. The CPU time is that of the relay only."""
    image = setting.large
    [blob] = image.layers
    with ExitStack() as stack:
        clients = stack.enter_context(Clients())
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(image.path), *NO_PEERS))
        port, nginx = stack.enter_context(nginx_proxy(setting.new("nginx"), holder.peer))
        theirs = Side(Target(port, blob_path(blob)), (nginx,))
        for how, verify, budget in (
            ("verified", "true", budgets.RELAY_VERIFIED),
            ("spliced", "false", budgets.RELAY_SPLICED),
        ):
            settings = (*MEMORY_STORE, *static_router([holder.url]), f"mirror.verify={verify}")
            with peili(setting.new("log"), *settings) as relay:
                ours = Side(Target(relay.local, blob_path(blob)), (relay.process,))
                what = f"relay {setting.large_name}, {how}"
                task = Task(GROUP, what, "nginx, proxy_pass", image.blob_path(blob.digest), budget=budget)
                yield from bandwidth(setting, clients, task, ours, theirs)
        yield from _over_tls(setting, clients)


def _over_tls(setting: Setting, clients: Clients) -> Iterator[Row]:
    """Yield rows of a verified relay that connects to the peer with mutual TLS. Its client uses plain HTTP."""
    image = setting.large
    [blob] = image.layers
    certificate = make_certificate(setting.new("certificate"))
    access = [f"peer.tls.{name}={path}" for name, path in certificate.files().items()]
    with ExitStack() as stack:
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(image.path), *NO_PEERS, *access))
        port, nginx = stack.enter_context(nginx_proxy(setting.new("nginx"), holder.peer, certificate))
        settings = (*MEMORY_STORE, *static_router([f"https://127.0.0.1:{holder.peer}"]), *access)
        relay = stack.enter_context(peili(setting.new("log"), *settings))
        ours = Side(Target(relay.local, blob_path(blob)), (relay.process,))
        theirs = Side(Target(port, blob_path(blob)), (nginx,))
        what = f"relay {setting.large_name}, verified, from a peer with mutual TLS"
        task = Task(GROUP, what, "nginx, proxy_pass", image.blob_path(blob.digest), budget=budgets.RELAY_TLS)
        yield from bandwidth(setting, clients, task, ours, theirs)
