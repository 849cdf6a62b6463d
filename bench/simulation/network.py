"""The simulated network: how many bytes flow in each step. Links are shared evenly; what one flow leaves, others use.

Each host has an uplink and a downlink, and upstream has an uplink. A host gets at most what its source had one step
before: a step is the delay of a hop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
"""How often what is left of the links is shared among the flows that could use more."""
NOBODY = -1
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of the links in bytes per second, and the delay of a hop in seconds.

    Attributes:
        host: The uplink and the downlink of each host.
        upstream: The uplink of upstream.
        hop: The delay of a hop.
    """

    host: float
    upstream: float
    hop: float = 0.02


class Network:
    """Transfers of layers to hosts. A transfer has a row: the number of the host times the layers, plus the layer.

    Args:
        hosts: How many hosts there are.
        sizes: The sizes of the layers in bytes.
        rates: The links.

    Attributes:
        upstream: The number that stands for upstream as a source.
        up: The uplinks, upstream last.
        down: The downlinks.
        path: How many bytes per second each host gets from upstream at most.
        size: The size of each transfer.
        offset: How many bytes each transfer has.
        source: From which host each transfer gets its bytes, or `NOBODY`.
        sent: How many bytes each host has sent, upstream last.
        tainted: Which transfers have a wrong byte.
        corrupt: The hosts that send wrong bytes.
    """

    def __init__(self, hosts: int, sizes: list[int], rates: Rates) -> None:
        self.layers = len(sizes)
        self.upstream = hosts
        self.up: Numbers = np.full(hosts + 1, rates.host)
        self.up[hosts] = rates.upstream
        self.down: Numbers = np.full(hosts, rates.host)
        self.path: Numbers = np.full(hosts, np.inf)
        self.size: Numbers = np.tile(np.array(sizes, dtype=np.float64), hosts)
        self.offset: Numbers = np.zeros(hosts * self.layers)
        self.source = np.full(hosts * self.layers, NOBODY)
        self.sent: Numbers = np.zeros(hosts + 1)
        self.tainted = np.zeros(hosts * self.layers, dtype=bool)
        self.corrupt = np.zeros(hosts + 1, dtype=bool)

    def row(self, host: int, layer: int) -> int:
        """Return the row of a transfer."""
        return host * self.layers + layer

    def step(self, seconds: float) -> NDArray[np.int64]:
        """Let bytes flow for a step. Returns the rows that have got some."""
        rows = np.flatnonzero((self.source != NOBODY) & (self.offset < self.size))
        if not rows.size:
            return rows
        source, host = self.source[rows], rows // self.layers
        from_host = source != self.upstream
        source_row = np.where(from_host, source * self.layers + rows % self.layers, 0)
        has = np.where(from_host, self.offset[source_row], self.size[rows])
        wanted = np.clip(has - self.offset[rows], 0, None)
        flows = np.bincount(host[~from_host], minlength=self.down.size)[host]  # they share the path of their host
        wanted = np.where(from_host, wanted, np.minimum(wanted, self.path[host] * seconds / np.maximum(flows, 1)))
        got = self._share(source, host, wanted, seconds)
        self.offset[rows] = np.minimum(self.offset[rows] + got, self.size[rows])
        self.sent += np.bincount(source, weights=got, minlength=self.sent.size)
        wrong = self.corrupt[source] | (from_host & self.tainted[source_row])
        self.tainted[rows[wrong & (got > 0)]] = True
        return rows[got > 0]

    def _share(self, source: NDArray[np.int64], host: NDArray[np.int64], wanted: Numbers, seconds: float) -> Numbers:
        """Return what each flow gets."""
        up, down = self.up * seconds, self.down * seconds
        got = np.zeros_like(wanted)
        for _ in range(_ROUNDS):
            active = np.flatnonzero((wanted - got > 1) & (up[source] > 1) & (down[host] > 1))
            if not active.size:
                break
            sources, hosts = source[active], host[active]
            share_up = up[sources] / np.bincount(sources, minlength=up.size)[sources]
            share_down = down[hosts] / np.bincount(hosts, minlength=down.size)[hosts]
            more = np.minimum(np.minimum(share_up, share_down), wanted[active] - got[active])
            got[active] += more
            up -= np.bincount(sources, weights=more, minlength=up.size)
            down -= np.bincount(hosts, weights=more, minlength=down.size)
        return got
