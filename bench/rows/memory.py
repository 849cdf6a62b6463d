"""Measures the memory, the CPU time and the start time of a mirror, idle and under load.

The idle mirror's store is a containerd with 5,000 blobs. The reference is docker-registry with the same blobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.network import LoopbackNetwork

from bench import budgets
from bench.clients import Clients, Target
from bench.measure import CPU_SECONDS, MEBIBYTES, SECONDS, Row, take_turns
from bench.mirrors import MEMORY_STORE, NO_PEERS, empty_peers, layout_store, peili, static_router
from bench.references import registry
from bench.setting import REPOSITORY, Setting, blob_path
from bench.usage import Memory, cpu_seconds, forget_peak, memory
from peili.mirror.testing.images import Image, pack_tar
from peili.mirror.tls.key_file import create_key_file

GROUP = "memory"
_AGAINST = "docker-registry"
_PEERS = 8
_BUSY_ROUNDS = 2
"""The most rounds. One of 32 transfers through a relay takes more than half a minute."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The CPU seconds of a time without requests, and the memory at its end."""

    cpu: float
    memory: Memory


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of the start, of an idle mirror, and of 32 transfers at the same time."""
    yield from _with_many_blobs(setting)
    yield from _transfers(setting)


def _with_many_blobs(setting: Setting) -> Iterator[Row]:
    count = setting.pick(5000, 200)
    images = setting.many(count)
    with ExitStack() as stack:
        peers = stack.enter_context(empty_peers(setting.new("log"), _PEERS))
        store = _containerd_with(setting, images, stack)
        settings = (*store, *static_router(peers))
        yield from _starting(setting, settings, f"{count:,} blobs")
        yield from _idling(setting, settings, images, f"idle with {count:,} blobs")
        key = setting.new("key")
        create_key_file(key)
        closed = (*store, *NO_PEERS, f"peer.shared_key_file={key}")
        yield from _idling(setting, closed, images, f"idle with {count:,} blobs and a shared key")


def _containerd_with(setting: Setting, images: Sequence[Image], stack: ExitStack) -> Sequence[str]:
    """Start a containerd with these images, which are in one layout. Return the settings of the store."""
    containerd = Containerd(
        stack.enter_context(LoopbackNetwork()).add_node("host"), setting.new("containerd"), unpack=False
    )
    stack.callback(containerd.stop)
    containerd.start()
    containerd.import_archive(pack_tar(images[0].path, setting.new("archive")))
    return ("store.kind=containerd", f"store.address={containerd.socket}", f"store.namespaces=['{NAMESPACE}']")


def _starting(setting: Setting, settings: Sequence[str], blobs: str) -> Iterator[Row]:
    """Measure the time from the start of the process, including Python's start, until it reports that it is ready."""
    [started] = take_turns([partial(_start, setting, settings)], rounds=setting.rounds)
    times, costs = zip(*started, strict=True)
    yield Row(GROUP, f"start to ready with {blobs}", SECONDS, times, budget=budgets.START)
    yield Row(GROUP, f"start to ready with {blobs}: CPU", CPU_SECONDS, costs)


def _start(setting: Setting, settings: Sequence[str]) -> tuple[float, float]:
    started = time.monotonic()
    with peili(setting.new("log"), *settings) as mirror:
        return time.monotonic() - started, cpu_seconds([mirror.process.pid])


def _idling(setting: Setting, settings: Sequence[str], images: Sequence[Image], what: str) -> Iterator[Row]:
    """Measure the CPU time of a minute and the memory after it. Further rounds, for the memory, are shorter."""
    seconds, shorter = setting.pick(60, 1), setting.pick(10, 1)
    pauses = [seconds, *[shorter] * (setting.few_rounds - 1)]
    ours, theirs = zip(*(_idle(setting, settings, images, pause) for pause in pauses), strict=True)
    yield Row(GROUP, f"{what}: CPU of {seconds} s", CPU_SECONDS, (ours[0].cpu,), _AGAINST, (theirs[0].cpu,))
    resident, their_resident = (tuple(each.memory.resident for each in side) for side in (ours, theirs))
    yield Row(GROUP, f"{what}: resident", MEBIBYTES, resident, _AGAINST, their_resident, budgets.IDLE_MEMORY)
    shared, their_shared = (tuple(each.memory.proportional for each in side) for side in (ours, theirs))
    yield Row(GROUP, f"{what}: proportional", MEBIBYTES, shared, _AGAINST, their_shared)


def _idle(setting: Setting, settings: Sequence[str], images: Sequence[Image], seconds: float) -> tuple[Idle, Idle]:
    """Start both sides and measure them without requests. Return ours and the reference."""
    named = [(image, REPOSITORY) for image in images]
    with peili(setting.new("log"), *settings) as mine, registry(setting.new("registry"), *named) as (_, theirs):
        both = (mine.process.pid, theirs.pid)
        before = [cpu_seconds([pid]) for pid in both]
        time.sleep(seconds)
        ours, reference = (Idle(cpu_seconds([pid]) - used, memory(pid)) for pid, used in zip(both, before, strict=True))
        return ours, reference


def _transfers(setting: Setting) -> Iterator[Row]:
    """Measure a host that relays 32 transfers, and the holder that serves them."""
    count = setting.pick(32, 4)
    what = f"{count} transfers of {setting.large_name}"
    rounds = min(_BUSY_ROUNDS, setting.rounds)
    relays, holders = zip(*(_busy(setting, count) for _ in range(rounds)), strict=True)
    yield from _peak_and_after(relays, f"relaying {what}")
    yield from _peak_and_after(holders, f"serving {what}")


def _busy(setting: Setting, count: int) -> tuple[Memory, Memory]:
    """Start a relay and a holder, and return their memory after `count` transfers at the same time."""
    image = setting.large
    [blob] = image.layers
    with ExitStack() as stack:
        clients = stack.enter_context(Clients(count))
        limit = f"limits.uploads_per_peer={count}"  # the default is smaller, and all transfers are for one peer
        holder = stack.enter_context(peili(setting.new("log"), *layout_store(image.path), *NO_PEERS, limit))
        relay = stack.enter_context(peili(setting.new("log"), *MEMORY_STORE, *static_router([holder.url])))
        for host in (relay, holder):
            forget_peak(host.process.pid)
        clients.transfer(Target(relay.local, blob_path(blob)), clients=count)
        return memory(relay.process.pid), memory(holder.process.pid)


def _peak_and_after(taken: Sequence[Memory], what: str) -> Iterator[Row]:
    peaks, afterwards = tuple(each.peak for each in taken), tuple(each.resident for each in taken)
    yield Row(GROUP, f"{what}: resident at most", MEBIBYTES, peaks, budget=budgets.BUSY_MEMORY)
    yield Row(GROUP, f"{what}: resident afterwards", MEBIBYTES, afterwards, budget=budgets.BUSY_MEMORY)
