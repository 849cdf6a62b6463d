"""Measures the transfer of a large blob from the store, against nginx with sendfile, and over TLS against nginx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tests.support.certificates import make_certificate

from bench import budgets
from bench.clients import Clients, Target
from bench.measure import Row
from bench.mirrors import NO_PEERS, layout_store, peili, tls_holder
from bench.references import nginx_files
from bench.rows.bandwidth import Side, Task, bandwidth
from bench.setting import Setting, blob_path

GROUP = "serve"


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of one client, of eight clients, of a range, and of one client over TLS."""
    with Clients(8) as clients:
        yield from _plain(setting, clients)
        yield from _over_tls(setting, clients)


def _plain(setting: Setting, clients: Clients) -> Iterator[Row]:
    image = setting.large
    [blob] = image.layers
    file, what, against = image.blob_path(blob.digest), f"serve {setting.large_name}", "nginx, sendfile"
    middle = range(blob.size // 4, 3 * blob.size // 4)
    with ExitStack() as stack:
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(image.path), *NO_PEERS))
        port, nginx = stack.enter_context(nginx_files(setting.new("nginx"), file.parent))
        ours = Side(Target(holder.peer, blob_path(blob)), (holder.process,))
        theirs = Side(Target(port, f"/{file.name}"), (nginx,))
        for task in (
            Task(GROUP, f"{what}, one client", against, file, budget=budgets.SERVE),
            Task(GROUP, f"{what}, eight clients", against, file, clients=8, budget=budgets.SERVE),
            Task(GROUP, f"{what}, its middle half", against, file, part=middle, budget=budgets.SERVE),
        ):
            yield from bandwidth(setting, clients, task, ours, theirs)


def _over_tls(setting: Setting, clients: Clients) -> Iterator[Row]:
    image = setting.large
    [blob] = image.layers
    file = image.blob_path(blob.digest)
    certificate = make_certificate(setting.new("certificates"))
    with ExitStack() as stack:
        port, mirror = stack.enter_context(tls_holder(setting.new("log"), image.path, certificate))
        their_port, nginx = stack.enter_context(nginx_files(setting.new("nginx-tls"), file.parent, certificate))
        ours = Side(Target(port, blob_path(blob), certificate.files()), (mirror,))
        theirs = Side(Target(their_port, f"/{file.name}", certificate.files()), (nginx,))
        what = f"serve {setting.large_name} over mutual TLS"
        task = Task(GROUP, what, "nginx, TLS", file, budget=budgets.SERVE_TLS)
        yield from bandwidth(setting, clients, task, ours, theirs)
