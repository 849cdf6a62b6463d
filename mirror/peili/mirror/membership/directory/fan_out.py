"""How many hosts each host feeds: the number that lets the last host finish first. Pure arithmetic.

A host that feeds k others needs k·F/B to send F bytes to each over an uplink of B bytes per second. Each hop from the
root adds a delay of δ seconds. With more children per host, each needs longer, but fewer hops are needed.
docs/cold-start.md has the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DEPTH = 64
"""How many hops a host is from its root at most."""
DEFAULT_SIZE = 16 * 1024 * 1024
"""The size of content in bytes as long as nobody has said it."""
UPLINK = 40e6
"""The uplink of a host in bytes per second as long as none was measured: about as far from 100 Mbit/s as from 1 Gbit/s.
If an uplink is taken for faster than it is, large content takes several times as long. If it is taken for slower, small
content has a few more hops."""
_LAYERS_AT_ONCE = 3
"""How many layers a runtime fetches at once: they share that uplink. A measured rate is that of one layer already."""
_HOP = 0.02
"""The delay of a hop in seconds as long as none was measured."""
_MOST_BRANCHING_LATE = 4 * MAX_DEPTH
"""The most hosts that branch late. With more, those that have a whole uplink are too few to help all others."""
_CHAIN_FACTOR = 1.5
"""A chain is still good if its last host takes this many times as long as in a tree: most others are done earlier."""


@dataclass(frozen=True, slots=True)
class Links:
    """What is known about the network.

    Attributes:
        uplink: What one content gets of the slowest uplink of the hosts that feed others, in bytes per second.
        hop: The delay in seconds that one hop adds.
        upstream: The rate in bytes per second at which the roots receive the content; None if it is not known.
    """

    uplink: float = UPLINK / _LAYERS_AT_ONCE
    hop: float = _HOP
    upstream: float | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How hosts are to feed each other.

    Attributes:
        children: How many hosts one host feeds at the same time.
        branches_late: Whether only hosts far from the root feed several others, if that is enough, so that those before
            them have a whole uplink each. This is for too many hosts for a chain, if a chain would be good otherwise.
    """

    children: int
    branches_late: bool


def choose_shape(size: int | None, hosts: int, sources: int, links: Links, most: int) -> Shape:
    """Return the number of children with which the last host is done first, and whether hosts branch late.

    If they do, the last host may be done later, but most others are done earlier.

    Args:
        size: The size of the content in bytes, if it is known.
        hosts: How many hosts are to be fed.
        sources: How many roots and whole holders they are fed from.
        links: What is known about the network.
        most: The greatest number of children to return.
    """
    each = -(-max(1, hosts) // max(1, sources))  # the hosts of one source

    def seconds(k: int) -> float:
        return finish_time(k, size or DEFAULT_SIZE, each, links)

    children = min((k for k in range(1, most + 1) if depth_of(k, each) <= MAX_DEPTH), key=seconds, default=most)
    is_between = MAX_DEPTH < each <= _MOST_BRANCHING_LATE
    return Shape(children, is_between and seconds(1) <= _CHAIN_FACTOR * seconds(children))


def finish_time(k: int, size: int, hosts: int, links: Links) -> float:
    """Return the seconds until the last of `hosts` is done if each host feeds `k` others."""
    seconds_per_byte = k / links.uplink
    if links.upstream:
        seconds_per_byte = max(seconds_per_byte, 1 / links.upstream)
    return size * seconds_per_byte + depth_of(k, hosts) * links.hop


def depth_of(k: int, hosts: int) -> int:
    """Return how many hops the last of `hosts` is from its source if each host, the source included, feeds `k`."""
    if k == 1:
        return hosts
    depth, level, fed = 0, 1, 0
    while fed < hosts:
        level *= k
        fed += level
        depth += 1
    return depth
