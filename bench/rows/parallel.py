"""Measures how many bytes a holder sends if the runtime fetches layers in parallel ranges.

The runtime is containerd 2.1.4, which closes each response when it has read one buffer of it. The reference is what
docker-registry sends if containerd requests the image from it directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.containerd_releases import Release
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import namespaces_work
from tests.lab.network import Node
from tests.lab.peili_process import launch_program
from tests.lab.processes import run, wait_for
from tests.lab.releases import release

from bench import budgets
from bench.measure import MEGABYTES, Row, take_turns
from bench.setting import MIB, Setting

GROUP = "parallel"
_AGAINST = "docker-registry, asked directly"
_VERSION = "2.1.4"
_PARALLELISM = ((3, 1), (3, 8), (10, 2), (20, 1))
"""The number of ranges at the same time, and the size of each in MiB."""


def rows(setting: Setting) -> Iterator[Row]:
    """Yield rows of the megabytes on the network for one image. Raises RuntimeError if they can't be counted."""
    if not namespaces_work():
        raise RuntimeError("left out, because it needs network namespaces, and so root")
    for concurrency, size in setting.pick(_PARALLELISM, _PARALLELISM[:1]):
        settings = (
            '[plugins."io.containerd.transfer.v1.local"]\n'
            f"max_concurrent_downloads = {concurrency}\nconcurrent_layer_fetch_buffer = {size * MIB}\n"
        )
        with ExitStack() as stack:
            names = ("holder", "puller", "direct")
            lab = stack.enter_context(Lab(*names, release=_release(), settings=settings, launch=launch_program))
            sides = [partial(_pull_through_peili, lab, setting), partial(_pull_directly, lab, setting)]
            lab.start_peili("holder", "puller")
            lab.hosts["direct"].containerd.set_mirrors(lab.upstream.name)
            ours, theirs = take_turns(sides, rounds=setting.pick(3, 1), warm_up=False)
        what = f"sent for 2 layers of {_size(setting) // MIB} MiB, {concurrency} ranges of {size} MiB at once"
        yield Row(GROUP, what, MEGABYTES, ours, _AGAINST, theirs, budgets.PARALLEL)


def _release() -> Release:
    try:
        return release(_VERSION)
    except LookupError as error:
        raise RuntimeError(f"left out: {error}") from error


def _size(setting: Setting) -> int:
    return setting.pick(60, 8) * MIB


def _pull_through_peili(lab: Lab, setting: Setting) -> float:
    """Pull a new image through peili, and return how many megabytes the holder sends."""
    holder, puller = lab.hosts["holder"], lab.hosts["puller"]
    image = lab.publish("library/parallel", [_size(setting)] * 2)
    holder.containerd.pull(image.by_digest)
    last = image.blob_url(image.image.layers[-1].digest)
    wait_for(lambda: puller.can_find(last), "the puller finds what the holder has")
    return _sent(holder.node, puller, image.by_digest)


def _pull_directly(lab: Lab, setting: Setting) -> float:
    """Pull a new image directly from the registry, and return how many megabytes the registry sends."""
    image = lab.publish("library/parallel", [_size(setting)] * 2)
    return _sent(lab.upstream.node, lab.hosts["direct"], image.by_digest)


def _sent(node: Node, host: Host, name: str) -> float:
    """Let `host` pull an image, and return how many megabytes `node` sends."""
    before = _counter(node)
    host.containerd.pull(name)
    return (_counter(node) - before) / 1e6


def _counter(node: Node) -> int:
    return int(run(node.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))
