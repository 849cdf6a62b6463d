"""What a mirror takes from its host while nothing happens and while much does: memory, CPU, and the time to start.

The store is containerd with 5,000 blobs, and the reference docker-registry with the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.network import Loopback
from tests.lab.processes import Process

from bench import budgets
from bench.clients import Clients, Target
from bench.measure import CPU_SECONDS, MEBIBYTES, SECONDS, Row, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, Peili, empty_peers, layout_store, peili, static_router
from bench.references import registry
from bench.setting import REPOSITORY, Setting, blob_path
from bench.usage import cpu_seconds, forget_peak, memory
from peili.mirror.testing.images import Image, pack_tar

GROUP = "memory"
_AGAINST = "docker-registry"
_PEERS = 8


def rows(setting: Setting) -> Iterator[Row]:
    """Starting, idling, and 32 transfers at the same time."""
    yield from _with_many_blobs(setting)
    yield from _transfers(setting)


def _with_many_blobs(setting: Setting) -> Iterator[Row]:
    count = setting.pick(5000, 200)
    images = setting.many(count)
    with ExitStack() as stack:
        peers = stack.enter_context(empty_peers(setting.new("log"), _PEERS))
        settings = (*_containerd_with(setting, images, stack), *static_router(peers))
        yield from _starting(setting, settings, f"{count:,} blobs")
        ours = stack.enter_context(peili(setting.new("log"), *settings))
        named = [(image, REPOSITORY) for image in images]
        _, theirs = stack.enter_context(registry(setting.new("registry"), *named))
        yield from _idling(setting, ours.process, theirs, f"idle with {count:,} blobs")


def _containerd_with(setting: Setting, images: Sequence[Image], stack: ExitStack) -> Sequence[str]:
    """The settings of a store: a containerd that has these images, which are in one layout."""
    containerd = Containerd(stack.enter_context(Loopback()).place("host"), setting.new("containerd"), unpack=False)
    stack.callback(containerd.stop)
    containerd.start()
    containerd.import_archive(pack_tar(images[0].path, setting.new("archive")))
    return ("store.kind=containerd", f"store.address={containerd.socket}", f"store.namespaces=['{NAMESPACE}']")


def _starting(setting: Setting, settings: Sequence[str], blobs: str) -> Iterator[Row]:
    """From the moment the process is made, Python's own start included, until it says that it is ready."""
    [started] = take_turns([partial(_start, setting, settings)], rounds=setting.rounds)
    times, costs = zip(*started, strict=True)
    yield Row(GROUP, f"start to ready with {blobs}", SECONDS, times, budget=budgets.START)
    yield Row(GROUP, f"start to ready with {blobs}: CPU", CPU_SECONDS, costs)


def _start(setting: Setting, settings: Sequence[str]) -> tuple[float, float]:
    began = time.monotonic()
    with peili(setting.new("log"), *settings) as started:
        return time.monotonic() - began, cpu_seconds([started.process.pid])


def _idling(setting: Setting, ours: Process, theirs: Process, what: str) -> Iterator[Row]:
    """The CPU of a minute, and then the memory."""
    seconds = setting.pick(60, 3)
    before = [cpu_seconds([process.pid]) for process in (ours, theirs)]
    time.sleep(seconds)
    used = [cpu_seconds([process.pid]) - start for process, start in zip((ours, theirs), before, strict=True)]
    yield Row(GROUP, f"{what}: CPU of {seconds} s", CPU_SECONDS, (used[0],), _AGAINST, (used[1],))
    mine, others = memory(ours.pid), memory(theirs.pid)
    resident = (mine.resident,), _AGAINST, (others.resident,)
    yield Row(GROUP, f"{what}: resident", MEBIBYTES, *resident, budgets.IDLE_MEMORY)
    proportional = (mine.proportional,), _AGAINST, (others.proportional,)
    yield Row(GROUP, f"{what}: proportional", MEBIBYTES, *proportional)


def _transfers(setting: Setting) -> Iterator[Row]:
    """One host serves 32 transfers, and another relays them."""
    image = setting.large
    [blob] = image.layers
    count = setting.pick(32, 4)
    what = f"{count} transfers of {setting.large_name}"
    with ExitStack() as stack:
        clients = stack.enter_context(Clients(count))
        allowed = f"limits.uploads_per_peer={count}"  # by default fewer, and here all are one peer's
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(image.path), *NO_PEERS, allowed))
        relay = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *static_router([holder.url])))
        for host in (holder, relay):
            forget_peak(host.process.pid)
        clients.transfer(Target(relay.local, blob_path(blob)), clients=count)
        yield from _peak_and_after(relay, f"relaying {what}")
        yield from _peak_and_after(holder, f"serving {what}")


def _peak_and_after(host: Peili, what: str) -> Iterator[Row]:
    taken = memory(host.process.pid)
    yield Row(GROUP, f"{what}: resident at most", MEBIBYTES, (taken.peak,), budget=budgets.BUSY_MEMORY)
    yield Row(GROUP, f"{what}: resident afterwards", MEBIBYTES, (taken.resident,), budget=budgets.BUSY_MEMORY)
