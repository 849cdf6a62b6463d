"""What a holder sends when a runtime fetches layers in parallel ranges. It is containerd 2.1.4, which closes each range
as soon as it has read one buffer of it. Held against what docker-registry sends when it is asked directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.containerd_releases import Release
from tests.lab.lab import Host, Lab
from tests.lab.namespaces import namespaces_work
from tests.lab.network import Node
from tests.lab.processes import run, wait_for
from tests.lab.releases import release

from bench import budgets
from bench.measure import MEGABYTES, Row, take_turns
from bench.setting import MIB, Setting

GROUP = "parallel"
_AGAINST = "docker-registry, asked directly"
_VERSION = "2.1.4"
_WAYS = ((3, 1), (3, 8), (10, 2), (20, 1))
"""Ranges at once, and the MiB of each."""


def rows(setting: Setting) -> Iterator[Row]:
    """Megabytes on the network for one image. Raises RuntimeError where that can't be counted."""
    if not namespaces_work():
        raise RuntimeError("left out, it needs network namespaces, so root")
    for at_once, size in setting.pick(_WAYS, _WAYS[:1]):
        settings = (
            '[plugins."io.containerd.transfer.v1.local"]\n'
            f"max_concurrent_downloads = {at_once}\nconcurrent_layer_fetch_buffer = {size * MIB}\n"
        )
        with ExitStack() as stack:
            lab = stack.enter_context(Lab("holder", "puller", "direct", release=_release(), settings=settings))
            sides = [partial(_through, lab, setting), partial(_straight, lab, setting)]
            lab.start_peili("holder", "puller")
            lab.hosts["direct"].containerd.set_mirrors(lab.upstream.name)
            ours, theirs = take_turns(sides, rounds=setting.pick(3, 1), warm_up=False)
        what = f"sent for 2 layers of {_size(setting) // MIB} MiB, {at_once} ranges of {size} MiB at once"
        yield Row(GROUP, what, MEGABYTES, ours, _AGAINST, theirs, budgets.PARALLEL)


def _release() -> Release:
    try:
        return release(_VERSION)
    except LookupError as error:
        raise RuntimeError(f"left out: {error}") from error


def _size(setting: Setting) -> int:
    return setting.pick(60, 8) * MIB


def _through(lab: Lab, setting: Setting) -> float:
    """What the holder sends to the puller."""
    holder, puller = lab.hosts["holder"], lab.hosts["puller"]
    image = lab.publish("library/parallel", [_size(setting)] * 2)
    holder.containerd.pull(image.by_digest)
    last = image.blob_url(image.image.layers[-1].digest)
    wait_for(lambda: puller.can_find(last), "the puller finds what the holder has")
    return _sent(holder.node, puller, image.by_digest)


def _straight(lab: Lab, setting: Setting) -> float:
    """What the registry sends."""
    image = lab.publish("library/parallel", [_size(setting)] * 2)
    return _sent(lab.upstream.node, lab.hosts["direct"], image.by_digest)


def _sent(node: Node, host: Host, name: str) -> float:
    """The megabytes that leave `node` while `host` pulls."""
    before = _counter(node)
    host.containerd.pull(name)
    return (_counter(node) - before) / 1e6


def _counter(node: Node) -> int:
    return int(run(node.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"])))
