"""Measures a pull by containerd of an image with 20 layers, through a mirror whose peer has the image.

The reference is a pull directly from docker-registry on loopback. The images are not unpacked: unpacking costs the same
on both sides, and more than everything else.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.network import LoopbackNetwork, Network
from tests.lab.peili_process import PeiliProcess
from tests.lab.processes import Process, wait_for
from tests.lab.upstream import Published, Upstream

from bench.measure import CPU_SECONDS, SECONDS, Row, take_turns
from bench.setting import MIB, Setting
from bench.usage import cpu_seconds
from peili.mirror.testing.images import make_layout

GROUP = "pull"
_AGAINST = "straight from docker-registry"
_LAYERS = 20


@dataclass(frozen=True, slots=True)
class Host:
    """A host with its containerd and its peili. The peili need not run."""

    containerd: Containerd
    peili: PeiliProcess


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of the time of a pull, and of the CPU seconds of all processes that take part in it."""
    size = setting.pick(16, 1) * MIB
    with ExitStack() as stack:
        network = stack.enter_context(LoopbackNetwork())
        upstream = Upstream(network.add_node("upstream"), setting.new("upstream"))
        stack.callback(upstream.stop)
        upstream.start()
        warm, puller, direct = (_host(setting, network, stack) for _ in range(3))
        image = upstream.push(make_layout(setting.new("image"), layers=[size] * _LAYERS, tags=["v1"]), "library/pulled")
        _join(upstream, warm, puller, image)
        direct.containerd.set_mirrors(upstream.name)
        through = (warm.peili.process, warm.containerd.process, puller.peili.process, puller.containerd.process)
        sides = (
            partial(_pull, image, puller.containerd, (*through, upstream.process)),
            partial(_pull, image, direct.containerd, (direct.containerd.process, upstream.process)),
        )
        ours, theirs = take_turns(sides, rounds=setting.rounds)
    what = f"pull {_LAYERS} layers of {size // MIB} MiB by containerd, warm peer"
    times, costs = zip(*ours, strict=True)
    their_times, their_costs = zip(*theirs, strict=True)
    yield Row(GROUP, what, SECONDS, times, _AGAINST, their_times)
    yield Row(GROUP, f"{what}: all CPU", CPU_SECONDS, costs, _AGAINST, their_costs)


def _host(setting: Setting, network: Network, stack: ExitStack) -> Host:
    directory = setting.new("host")
    node = network.add_node(directory.name)
    host = Host(
        Containerd(node, directory / "containerd", unpack=False),
        PeiliProcess(node, directory.name, directory / "peili"),
    )
    stack.callback(host.containerd.stop)
    stack.callback(host.peili.stop)
    host.containerd.start()
    return host


def _join(upstream: Upstream, warm: Host, puller: Host, image: Published) -> None:
    """Pull the image on `warm`, start both mirrors as peers, and let `puller` use its mirror."""
    warm.containerd.set_mirrors(upstream.name)
    warm.containerd.pull(image.by_tag)
    for host in (warm, puller):
        store = {"kind": "containerd", "address": str(host.containerd.socket), "namespaces": [NAMESPACE]}
        peers = [f"http://{each.peili.peer}" for each in (warm, puller)]
        host.peili.start({"store": store, "router": {"kind": "static", "peers": peers}})
    puller.containerd.set_mirrors(upstream.name, f"http://{puller.peili.local}")
    last = image.blob_url(image.image.layers[-1].digest)
    wait_for(lambda: puller.peili.request("HEAD", last).status == 200, "the puller finds what its peer has")


def _pull(image: Published, containerd: Containerd, involved: Sequence[Process]) -> tuple[float, float]:
    """Pull the image and remove it. Return the seconds of the pull, and the CPU seconds of `involved` and of ctr."""
    pids = [process.pid for process in involved]
    client, others = _children_cpu_seconds(), cpu_seconds(pids)
    started = time.monotonic()
    containerd.pull(image.by_tag)
    took = time.monotonic() - started
    cost = cpu_seconds(pids) - others + _children_cpu_seconds() - client
    containerd.remove(image.by_tag)
    return took, cost


def _children_cpu_seconds() -> float:
    """Return the CPU seconds of all ended children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
