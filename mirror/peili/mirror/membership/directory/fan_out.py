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
_UPLINK = 40e6
"""The uplink of a host in bytes per second as long as none was measured: about as far from 100 Mbit/s as from 1 Gbit/s.
If an uplink is taken for faster than it is, large content takes several times as long. If it is taken for slower, small
content has a few more hops."""
_HOP = 0.02
"""The delay of a hop in seconds as long as none was measured."""


@dataclass(frozen=True, slots=True)
class Links:
    """What is known about the network.

    Attributes:
        uplink: The slowest uplink of the hosts that feed others, in bytes per second.
        hop: The delay in seconds that one hop adds.
        upstream: The rate in bytes per second at which the roots receive the content; None if it is not known.
    """

    uplink: float = _UPLINK
    hop: float = _HOP
    upstream: float | None = None


def choose_fan_out(size: int | None, hosts: int, sources: int, links: Links, most: int) -> int:
    """Return how many hosts one host feeds at the same time.

    Args:
        size: The size of the content in bytes, if it is known.
        hosts: How many hosts are to be fed.
        sources: How many roots and whole holders they are fed from.
        links: What is known about the network.
        most: The greatest number to return.

    Returns:
        The number, from 1 to `most`, that makes the time until the last host is done the shortest.
    """
    each = -(-max(1, hosts) // max(1, sources))  # the hosts of one source
    numbers = [k for k in range(1, most + 1) if depth_of(k, each) <= MAX_DEPTH] or [most]
    return min(numbers, key=lambda k: finish_time(k, size or DEFAULT_SIZE, each, links))


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
