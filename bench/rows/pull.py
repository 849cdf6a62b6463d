"""Measures a pull by containerd of an image with 20 layers, through a mirror whose peer has the image.

The reference is a pull directly from docker-registry on loopback. The images are not unpacked: unpacking costs the same
on both sides, and more than everything else. A pull of an image that only some may pull is compared with one of an
image that everybody may pull, through the same mirror.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.lab.containerd import NAMESPACE, Containerd
from tests.lab.network import LoopbackNetwork, Network
from tests.lab.peili_process import PeiliProcess, launch_program
from tests.lab.processes import Process, wait_for
from tests.lab.token_server import TokenServer
from tests.lab.upstream import Published, Upstream

from bench.budgets import COVERED_PULL
from bench.measure import CPU_SECONDS, SECONDS, Row, take_turns
from bench.setting import MIB, Setting
from bench.usage import cpu_seconds
from peili.mirror.testing.images import make_layout
from peili.mirror.tls.key_file import create_key_file

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
    size, layers = setting.pick(16, 1) * MIB, setting.pick(_LAYERS, 4)
    with ExitStack() as stack:
        network = stack.enter_context(LoopbackNetwork())
        upstream = Upstream(network.add_node("upstream"), setting.new("upstream"))
        stack.callback(upstream.stop)
        upstream.start()
        warm, puller, direct = (_host(setting, network, stack) for _ in range(3))
        image = upstream.push(make_layout(setting.new("image"), layers=[size] * layers, tags=["v1"]), "library/pulled")
        _join(warm, puller, image)
        _wait_found(puller, image, {})
        direct.containerd.set_mirrors(upstream.name)
        through = (warm.peili.process, warm.containerd.process, puller.peili.process, puller.containerd.process)
        sides = (
            partial(_pull, image, puller.containerd, (*through, upstream.process)),
            partial(_pull, image, direct.containerd, (direct.containerd.process, upstream.process)),
        )
        ours, theirs = take_turns(sides, rounds=setting.rounds)
    what = f"pull {layers} layers of {size // MIB} MiB by containerd, warm peer"
    times, costs = zip(*ours, strict=True)
    their_times, their_costs = zip(*theirs, strict=True)
    yield Row(GROUP, what, SECONDS, times, _AGAINST, their_times)
    yield Row(GROUP, f"{what}: all CPU", CPU_SECONDS, costs, _AGAINST, their_costs)
    yield _covered_row(setting, size, layers)


def _covered_row(setting: Setting, size: int, layers: int) -> Row:
    """Compare a pull with rights, which the mirror has to check, with one that needs none."""
    with ExitStack() as stack:
        network = stack.enter_context(LoopbackNetwork())
        tokens = TokenServer(network.add_node("tokens"), setting.new("tokens"), public=["public/*"])
        upstream = Upstream(network.add_node("private"), setting.new("private"), authentication=tokens)
        for service in (tokens, upstream):
            stack.callback(service.stop)
            service.start()
        warm, puller = (_host(setting, network, stack) for _ in range(2))
        covered, open_to_all = (
            upstream.push(make_layout(setting.new("image"), layers=[size] * layers, tags=["v1"]), f"{team}/pulled")
            for team in ("team", "public")
        )
        key = setting.new("key")
        create_key_file(key)
        rights: Any = {
            "mirror": {"authorize": [f"{upstream.name}/team/*"]},
            "peer": {"shared_key_file": str(key)},
            f'upstream."{upstream.name}"': {"url": f"http://{upstream.name}"},
        }
        secret = ("--user", str(tokens.publisher))
        warm.containerd.set_mirrors(upstream.name)
        warm.containerd.pull(open_to_all.by_tag, *secret)
        _join(warm, puller, covered, secret, **rights)
        for image in (covered, open_to_all):
            issued = tokens.issue(tokens.publisher, [f"repository:{image.repository}:pull"])
            assert issued is not None
            _wait_found(puller, image, {"Authorization": f"Bearer {issued.token}"})
        sides = [partial(_pull, image, puller.containerd, (), secret) for image in (covered, open_to_all)]
        ours, theirs = take_turns(sides, rounds=setting.rounds)
    what = f"pull {layers} layers of {size // MIB} MiB by containerd, with rights that are checked"
    times, their_times = ([took for took, _ in side] for side in (ours, theirs))
    return Row(GROUP, what, SECONDS, tuple(times), "an image for everybody", tuple(their_times), COVERED_PULL)


def _host(setting: Setting, network: Network, stack: ExitStack) -> Host:
    directory = setting.new("host")
    node = network.add_node(directory.name)
    host = Host(
        Containerd(node, directory / "containerd", unpack=False),
        PeiliProcess(node, directory.name, directory / "peili", launch=launch_program),
    )
    stack.callback(host.containerd.stop)
    stack.callback(host.peili.stop)
    host.containerd.start()
    return host


def _join(warm: Host, puller: Host, image: Published, secret: Sequence[str] = (), **sections: Any) -> None:
    """Pull the image on `warm`, start both mirrors as peers, and let `puller` use its mirror.

    Args:
        warm: A host.
        puller: Another host.
        image: The image.
        secret: Options of ctr, if the image can't be pulled without.
        sections: More sections of the configuration of both mirrors. If there is `peer`, the peer doors use TLS.
    """
    scheme = "https" if "peer" in sections else "http"
    warm.containerd.set_mirrors(image.registry)
    warm.containerd.pull(image.by_tag, *secret)
    for host in (warm, puller):
        store = {"kind": "containerd", "address": str(host.containerd.socket), "namespaces": [NAMESPACE]}
        peers = [f"{scheme}://{each.peili.peer}" for each in (warm, puller)]
        host.peili.start({"store": store, "router": {"kind": "static", "peers": peers}, **sections})
    puller.containerd.set_mirrors(image.registry, f"http://{puller.peili.local}")


def _wait_found(puller: Host, image: Published, headers: Mapping[str, str]) -> None:
    """Wait until the mirror of `puller` finds what its peer has."""
    last = image.blob_url(image.image.layers[-1].digest)
    wait_for(lambda: puller.peili.request("HEAD", last, headers).status == 200, "the puller finds what its peer has")


def _pull(
    image: Published, containerd: Containerd, involved: Sequence[Process], secret: Sequence[str] = ()
) -> tuple[float, float]:
    """Pull the image and remove it. Return the seconds of the pull, and the CPU seconds of `involved` and of ctr."""
    pids = [process.pid for process in involved]
    client, others = _children_cpu_seconds(), cpu_seconds(pids)
    started = time.monotonic()
    containerd.pull(image.by_tag, *secret)
    took = time.monotonic() - started
    cost = cpu_seconds(pids) - others + _children_cpu_seconds() - client
    containerd.remove(image.by_tag)
    return took, cost


def _children_cpu_seconds() -> float:
    """Return the CPU seconds of all ended children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
