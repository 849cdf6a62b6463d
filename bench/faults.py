"""The faults of a cold start, and what is expected of each. The expectations were written before the first run.

For every fault: each surviving host ends with the right bytes of the whole image, at most `wait_timeout` (30 s) later
than without the fault, unless its pull would have failed without peili, too. A host whose containerd or client is dead
or stopped does not survive. Copies are what upstream may send at most, as copies of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.e2e.checks import flip_byte
from tests.lab.namespaces import NamespaceNode
from tests.lab.processes import Process

from bench.cold_start import Links
from bench.drill import Drill
from bench.setting import MIB

WAIT = 30.0
"""`Limits.wait_timeout`: the seconds by which a fault may delay a surviving host."""

_SHARE = 0.3
"""The part of the image that the first host has received when something happens to it."""
_FROZEN = 10.0
_USUAL = Links(40, 40)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        what: What goes wrong.
        expected: What is expected, in addition to what holds for every fault.
        act: Starts the pulls and makes the fault.
        copies: The most copies of the image that upstream may send.
        later: The most seconds by which the last surviving host may have the image later than without the fault.
        times: Instead of `later`, the most time that it may take, in multiples of the time without the fault.
        layers: The layers of the image in bytes.
        links: The rates of the links.
        groups: The number of groups of hosts that know only each other.
        fails: Whether every pull fails, as without peili.
    """

    what: str
    expected: str
    act: Callable[[Drill], None]
    copies: float = 1.05
    later: float = WAIT
    times: float | None = None
    layers: Sequence[int] = (32 * MIB,)
    links: Links = _USUAL
    groups: int = 1
    fails: bool = False


def without(fault: Fault) -> Fault:
    """Return the same cold start without the fault."""
    links = Links(fault.links.hosts, max(fault.links.hosts, fault.links.upstream))
    return replace(fault, act=_all_at_once, links=links, groups=1, fails=False)


def _all_at_once(drill: Drill) -> None:
    drill.pulls.start(drill.hosts)


def _join_slowly(drill: Drill) -> None:
    drill.pulls.start(drill.hosts, interval=0.5)


def _kill_a_quarter(drill: Drill) -> None:
    drill.start()
    drill.wait_until_received(drill.others[-1], _SHARE)
    for host in drill.others[: len(drill.hosts) // 4]:
        drill.kill(host)


def _kill_home(drill: Drill) -> None:
    largest = max(drill.pulls.blobs, key=lambda blob: blob.size)
    home = drill.home(largest.digest)
    drill.first, *drill.others = sorted(drill.hosts, key=lambda host: host is home)
    drill.start()
    drill.wait_until_received(drill.first, _SHARE)
    drill.kill(home)


def _containerd(drill: Drill) -> Process:
    return drill.first.containerd.process


def _client(drill: Drill) -> Process:
    return drill.pulls.running[drill.first.name]


def _peili(drill: Drill) -> Process:
    return drill.first.peili.process


def _to_first(process: Callable[[Drill], Process], do: Callable[[Process], object], drill: Drill) -> None:
    """Do something to a process of the first host when it has received a part of the image."""
    drill.start()
    drill.wait_until_received(drill.first, _SHARE)
    do(process(drill))
    if process is not _peili or do is Process.freeze:
        drill.lose(drill.first)


def _on_other_registry(drill: Drill, rate: str, *, closed: bool) -> None:
    """Let the first host use another registry than the others. It does not count as a survivor."""
    second = drill.second_upstream(rate, closed=closed)
    mirror = f"http://{drill.first.peili.local}"
    drill.first.containerd.set_mirrors(drill.scene.lab.upstream.name, mirror, server=second.name)
    drill.pulls.start([drill.first])
    drill.wait(0.3)
    drill.lose(drill.first)
    drill.pulls.start(drill.others)


def _slow_uplink(drill: Drill, *, is_first: bool) -> None:
    """Let a host have a slow uplink: the one that is sent upstream, or another one."""
    node = (drill.first if is_first else drill.others[0]).node
    assert isinstance(node, NamespaceNode)
    node.limit_link("10mbit", f"{drill.scene.links.hosts}mbit")
    drill.pulls.start([drill.first])
    drill.wait(0.3)
    drill.pulls.start(drill.others)


def _freeze_upstream(drill: Drill) -> None:
    drill.start()
    drill.wait_until_received(drill.first, _SHARE)
    drill.scene.lab.upstream.process.freeze()
    drill.wait(10)
    drill.scene.lab.upstream.process.resume()


def _flip_byte(drill: Drill) -> None:
    """Flip a byte on the first host's disk before any other host has read it."""
    drill.tries = 3
    [layer] = drill.pulls.image.image.layers
    drill.pulls.start([drill.first])
    drill.wait_until_received(drill.first, _SHARE)
    path = drill.first.containerd.unfinished_path(layer.digest)
    assert path is not None
    flip_byte(path, layer.size // 10)
    drill.lose(drill.first)
    drill.pulls.start(drill.others)


def _stop_upstream(drill: Drill) -> None:
    drill.scene.lab.upstream.stop()
    drill.pulls.start(drill.hosts)
    drill.pulls.wait()
    drill.scene.lab.upstream.start()


_OTHERS_GO_ON = (
    "The others have what it had received, and one of them fetches the rest from upstream. What the first host had "
    "received without having shown it is sent twice."
)
_STOPPED = (
    "Nothing arrives there for 15 s; then another host fetches the rest. What waits in the buffers of the connection "
    "that nobody reads is sent twice."
)
_ROOT_GOES_ON = (
    "Its runtime goes on, but nobody can read from it. Another host fetches the rest from upstream, so that the part "
    "after the fault is sent twice."
)

FAULTS: Sequence[Fault] = (
    Fault(
        "hosts join one every 0.5 s",
        "Each one joins where it finds the content. The last one reads the beginning as fast as its link allows.",
        _join_slowly,
    ),
    Fault(
        "a quarter of the hosts is killed",
        "Those that read from them go on at the same byte with another host.",
        _kill_a_quarter,
    ),
    Fault("the home of the blob is killed", "Transfers go on. The second home answers what is asked.", _kill_home),
    Fault(
        "the first host's containerd is killed",
        _OTHERS_GO_ON,
        partial(_to_first, _containerd, Process.kill),
        1.2,
    ),
    Fault("the first host's client is killed", _OTHERS_GO_ON, partial(_to_first, _client, Process.kill), 1.2),
    Fault("the first host's peili is killed", _ROOT_GOES_ON, partial(_to_first, _peili, Process.kill), 1.8),
    Fault(
        "the first host's containerd is stopped",
        _STOPPED,
        partial(_to_first, _containerd, Process.freeze),
        1.4,
    ),
    Fault("the first host's client is stopped", _STOPPED, partial(_to_first, _client, Process.freeze), 1.4),
    Fault("the first host's peili is stopped", _ROOT_GOES_ON, partial(_to_first, _peili, Process.freeze), 1.8),
    Fault(
        "the first host's path to upstream has a tenth of the rate",
        "A second host is sent upstream, and the others follow it. The first host needs as long as without peili, and "
        "what it fetches is sent twice.",
        partial(_on_other_registry, rate="4mbit", closed=False),
        2.05,
        layers=(16 * MIB,) * 4,
    ),
    Fault(
        "one host of eight has an uplink of 10 Mbit/s, the others 100",
        "It becomes a leaf: it feeds nobody, or gives up its children soon.",
        partial(_slow_uplink, is_first=False),
        times=1.5,
        layers=(64 * MIB,),
        links=Links(100, 100),
    ),
    Fault(
        "the first host has an uplink of 10 Mbit/s, the others 100",
        "A second host is sent upstream, and the others follow it. So most of the content is sent twice, for which "
        "upstream alone needs twice the time.",
        partial(_slow_uplink, is_first=True),
        2.05,
        times=2.2,
        layers=(64 * MIB,),
        links=Links(100, 100),
    ),
    Fault(
        "upstream has 4 Mbit/s",
        "Nobody blames a feeder that waits. All hosts end when the first one ends.",
        _all_at_once,
        layers=(8 * MIB,),
        links=Links(40, 4),
    ),
    Fault("upstream is frozen for 10 s", "All wait for these 10 s, and nobody else goes upstream.", _freeze_upstream),
    Fault(
        "upstream is dead from the start",
        "Each pull fails, as without peili, when its host has been sent upstream.",
        _stop_upstream,
        0,
        fails=True,
    ),
    Fault(
        "upstream answers 401 to the first host",
        "Its claim expires after 2 s without a byte; then another host is sent upstream. Its pull fails as without it.",
        partial(_on_other_registry, rate="40mbit", closed=True),
    ),
    Fault(
        "a byte is flipped on the disk of the first host",
        "No other host stores it. Pulls of hosts whose runtime has received it fail, and succeed when repeated, at "
        "most twice. Another host fetches the blob from upstream again.",
        _flip_byte,
        2.1,
    ),
    Fault("two halves know only themselves", "Each half fetches a copy.", _all_at_once, 2.05, groups=2),
)
"""All faults."""
