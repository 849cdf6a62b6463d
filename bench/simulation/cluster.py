"""The simulated hosts: each pulls an image, asks homes where to get each layer, and does what they answer.

What a host does here is a model of the relay and of the router: the times after which it notices something are theirs.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from bench.simulation.homes import View
from bench.simulation.hosts import NEVER, SimulatedHost, State, Transfer
from bench.simulation.network import NOBODY, Network, Rates
from peili.mirror import FailureReason, LeaseEnd, Limits
from peili.mirror.limits import MIB
from peili.mirror.membership.directory.upstream_rates import UpstreamFetches
from peili.mirror.peer_api.directory import Holding
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, GoUpstream, LeaseReport, WaitFor

LAYERS_AT_ONCE = 3
"""How many layers containerd fetches at the same time."""
_REFUSED_AFTER = 0.05
"""Seconds until a host notices that a feeder was killed."""
_SILENT_AFTER = 1.3
"""Seconds until a host notices that a feeder does not answer: ``hedge_delay``, then a question that has no answer."""
_HOME_TIMEOUT = 0.25
_GATHER_TIME = 0.05
_GROWTH_INTERVAL = 0.5
_UPSTREAM_DELAY = 0.05
"""Seconds that the runtime needs to go upstream."""
_GIVEN_UP_AFTER = 1.0
"""Seconds after which the store knows that the runtime has closed its unfinished file for good."""
_RETRY_AFTER = 10.0
"""Seconds after which a pull that failed is repeated."""


class Cluster:
    """A cluster that pulls an image.

    Args:
        hosts: How many hosts there are.
        sizes: The sizes of the layers in bytes.
        rates: The links.
        parts: Into how many parts the cluster is divided that know only themselves.
        seed: Of everything that is random.

    Attributes:
        time: The time in seconds.
        network: The network.
        hosts: The hosts.
        transfers: The transfers, by row.
        views: What the parts of the cluster know.
        upstream_works: Whether upstream answers at all.
    """

    def __init__(self, hosts: int, sizes: Sequence[int], rates: Rates, *, parts: int = 1, seed: int = 1) -> None:
        self.time = 0.0
        self.limits = Limits()
        self.network = Network(hosts, list(sizes), rates)
        self.upstream_works = True
        self._hop = rates.hop
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        names = [f"host-{number}" for number in range(hosts)]
        self.keys = [f"sha256:{layer:064x}" for layer in range(len(sizes))]
        members = [names[part::parts] for part in range(parts)]
        self.views = [View(each, self.limits, lambda: self.time) for each in members]
        self.hosts = [
            SimulatedHost(n, name, self.views[n % parts], UpstreamFetches(lambda: self.time))
            for n, name in enumerate(names)
        ]
        self.transfers = [Transfer(row // len(sizes), row % len(sizes), row) for row in range(hosts * len(sizes))]
        self._progress = np.zeros(len(self.transfers))
        self._unfinished = hosts

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def run(self, most: float) -> None:
        """Run until all hosts are done, for at most so many seconds of the simulation."""
        next_second = 1.0
        while self._unfinished and self.time < most:
            self.time += self._hop
            while self._events and self._events[0][0] <= self.time:
                heapq.heappop(self._events)[2]()
            rows = self.network.step(self._hop)
            self._progress[rows] = self.time
            done = rows[self.network.offset[rows] >= self.network.size[rows]]
            for row in done:
                self._finish(self.transfers[int(row)])
            if self.time >= next_second:
                next_second += 1.0
                self._every_second()

    def start(self, host: SimulatedHost) -> None:
        """Begin the pull on a host."""
        while host.running < LAYERS_AT_ONCE and host.next_layer < self.network.layers:
            transfer = self.transfers[self.network.row(host.number, host.next_layer)]
            host.next_layer += 1
            host.running += 1
            self._progress[transfer.row] = self.time
            self._publish(transfer, 0)
            self.acquire(transfer)

    def kill(self, host: SimulatedHost, *, is_frozen: bool = False) -> None:
        """End a host, or stop it so that its connections stay open."""
        if not host.is_alive:
            return
        host.is_alive = False
        self._unfinished -= host.finished is None
        host.view.dead.add(host.name)
        self.network.up[host.number] = self.network.down[host.number] = 0
        reason = FailureReason.SILENT if is_frozen else FailureReason.UNREACHABLE
        for layer in range(self.network.layers):
            self.network.source[self.network.row(host.number, layer)] = NOBODY
            for child in self._children(self.transfers[self.network.row(host.number, layer)]):
                self._fail_later(child, reason, _SILENT_AFTER if is_frozen else _REFUSED_AFTER)

    def acquire(self, transfer: Transfer) -> None:
        """Ask a home where a host gets a layer, and do that."""
        host, key = self.hosts[transfer.host], self.keys[transfer.layer]
        if not host.is_alive or transfer.state in {State.DONE, State.FAILED}:
            return
        self._stop(transfer, State.WAITING)
        home = host.view.homes_of(key, host.known_dead)[0]
        if home in host.view.dead:
            host.known_dead.add(home)
            self.at(self.time + _HOME_TIMEOUT, lambda: self._ask_next_home(transfer, home))
            return
        transfer.home = home
        offset = int(self.network.offset[transfer.row])
        size = int(self.network.size[transfer.row])
        request = ClaimRequest(host.name, key, offset, size, True, dict(transfer.failed), host.upstream.best_rate())
        match host.view.acquire(home, request):
            case WaitFor(seconds):
                self.at(self.time + seconds, lambda: self.acquire(transfer))
            case FeedFrom(holders):
                host.upstream.end(key)
                self._connect(transfer, int(holders[0].id.partition("-")[2]))
            case GoUpstream():
                transfer.claimed_at, transfer.claimed = self.time, self.network.offset[transfer.row]
                self.at(self.time + _UPSTREAM_DELAY, lambda: self._go_upstream(transfer))

    def _ask_next_home(self, transfer: Transfer, home: str) -> None:
        self._leave_home(self.hosts[transfer.host], home)
        self.acquire(transfer)

    def _connect(self, transfer: Transfer, feeder: int) -> None:
        """Read from a host, or find out that this is not possible."""
        source = self.transfers[self.network.row(feeder, transfer.layer)]
        transfer.state, transfer.feeder = State.FED, feeder
        host = self.hosts[transfer.host]
        host.held[transfer.row] = transfer
        self._report_soon(host, transfer.home, 0.5)
        if not self.hosts[feeder].is_alive:
            return self._fail_later(transfer, FailureReason.UNREACHABLE, _REFUSED_AFTER)
        if source.state is State.IDLE and not self.network.offset[source.row]:
            return self._fail_later(transfer, FailureReason.STARVING, self._hop)
        if source.state is not State.DONE:
            if self._is_below(source, transfer.host):
                return self._fail_later(transfer, FailureReason.CIRCULAR, self._hop)
            if len(self._children(source)) > self.limits.children:
                return self._fail_later(transfer, FailureReason.BUSY, self._hop)
        transfer.source = source
        transfer.is_source_whole = source.state is State.DONE
        self.network.source[transfer.row] = feeder
        if source.state in {State.WAITING, State.UPSTREAM, State.FAILED}:
            self._watch_claim(source)
        return None

    def _watch_claim(self, root: Transfer) -> None:
        """Tell the children of a root that it expects nothing any more, if no byte comes in time."""
        if root.claimed_at == NEVER or self.network.offset[root.row] > root.claimed:
            return

        def check() -> None:
            if root.state is not State.DONE and self.network.offset[root.row] <= root.claimed:
                for child in self._children(root):
                    self._fail_later(child, FailureReason.STARVING, self._hop)

        self.at(max(self.time, root.claimed_at + self.limits.claim_timeout), check)

    def _go_upstream(self, transfer: Transfer) -> None:
        host = self.hosts[transfer.host]
        if not host.is_alive or transfer.state is not State.WAITING:
            return
        if host.is_denied or not self.upstream_works:
            self._stop(transfer, State.FAILED)
            host.upstream.end(self.keys[transfer.layer])
            if not host.is_denied:
                self._give_up(host)
            else:
                transfer.failed = {}
                self.at(self.time + _GIVEN_UP_AFTER, lambda: self._withdraw(transfer))
                self.at(self.time + _RETRY_AFTER, lambda: self._retry(transfer))
            return
        transfer.state, transfer.source = State.UPSTREAM, None
        self.network.source[transfer.row] = self.network.upstream
        size, offset = int(self.network.size[transfer.row]), int(self.network.offset[transfer.row])
        host.upstream.begin(self.keys[transfer.layer], size=size, can_share=True)
        host.upstream.grow(self.keys[transfer.layer], offset)
        self._grow(transfer)

    def _give_up(self, host: SimulatedHost) -> None:
        """The pull has failed, as it would without peili."""
        if host.finished is None:
            host.finished = self.time
            self._unfinished -= 1

    def _retry(self, transfer: Transfer) -> None:
        transfer.state = State.WAITING
        self._progress[transfer.row] = self.time
        self.acquire(transfer)

    def _grow(self, transfer: Transfer) -> None:
        """Tell the homes how far a root is. containerd writes its file in pieces of 1 MiB."""
        host = self.hosts[transfer.host]
        if transfer.state is not State.UPSTREAM or not host.is_alive:
            return
        available = int(self.network.offset[transfer.row] // MIB * MIB)
        is_first = transfer.published <= 0
        if available > transfer.published:
            host.upstream.grow(self.keys[transfer.layer], available)
            self._publish(transfer, available)
            is_first = False
        self.at(self.time + (_GATHER_TIME if is_first else _GROWTH_INTERVAL), lambda: self._grow(transfer))

    def _finish(self, transfer: Transfer) -> None:
        host = self.hosts[transfer.host]
        if self.network.tainted[transfer.row]:
            return self._discard(transfer)
        was_fed = transfer.state is State.FED
        self._stop(transfer, State.DONE)
        host.upstream.complete(self.keys[transfer.layer], int(self.network.size[transfer.row]))
        self._publish(transfer, None)
        if was_fed:
            host.view.report(transfer.home, host.name, [self._report_of(transfer, LeaseEnd.DONE)], None)
        host.running -= 1
        self.start(host)
        if not host.running:
            host.finished = self.time
            self._unfinished -= 1
        return None

    def _discard(self, transfer: Transfer, link: tuple[int, int] | None = None) -> None:
        """The digest is wrong: find out where, tell those behind, and begin again when the pull is repeated."""
        host, key = self.hosts[transfer.host], self.keys[transfer.layer]
        upper, lower = link = link or self._wrong_link(transfer)
        if lower == transfer.host:
            failed = {self.hosts[upper].name: FailureReason.WRONG}
            host.view.acquire(transfer.home, ClaimRequest(host.name, key, failed=failed))
        barred = {self.hosts[each].name for each in (upper, lower) if each != transfer.host}
        transfer.failed = dict.fromkeys(barred, FailureReason.BROKEN)
        host.view.report(transfer.home, host.name, [self._report_of(transfer, FailureReason.WRONG)], None)
        children = self._children(transfer)
        self._stop(transfer, State.FAILED)
        self.network.offset[transfer.row], self.network.tainted[transfer.row] = 0, False
        for child in children:
            if self.network.tainted[child.row]:
                self._discard(child, link)
            else:
                self._fail_later(child, FailureReason.STARVING, self._hop)
        self.at(self.time + _RETRY_AFTER, lambda: self._retry(transfer))

    def _wrong_link(self, transfer: Transfer) -> tuple[int, int]:
        """Return the two hosts between which a byte was changed, the upper one first, as tracing finds them."""
        while transfer.state is State.FED and not self.network.corrupt[transfer.feeder]:
            transfer = self.transfers[self.network.row(transfer.feeder, transfer.layer)]
        return transfer.feeder, transfer.host

    def _stop(self, transfer: Transfer, state: State) -> None:
        transfer.state, transfer.feeder = state, NOBODY
        self.network.source[transfer.row] = NOBODY
        self.hosts[transfer.host].held.pop(transfer.row, None)

    def _children(self, transfer: Transfer) -> list[Transfer]:
        rows = np.flatnonzero(self.network.source[transfer.layer :: self.network.layers] == transfer.host)
        return [self.transfers[self.network.row(int(host), transfer.layer)] for host in rows]

    def _is_below(self, source: Transfer, host: int) -> bool:
        """Return whether `source` gets its bytes through `host`, as the path in its answers says."""
        while source.state is State.FED:
            if source.feeder == host:
                return True
            source = self.transfers[self.network.row(source.feeder, source.layer)]
        return False

    def _fail_later(self, transfer: Transfer, reason: str, seconds: float) -> None:
        feeder = transfer.feeder

        def fail() -> None:
            if transfer.state is State.FED and transfer.feeder == feeder:
                transfer.failed[self.hosts[feeder].name] = reason
                self.acquire(transfer)

        self.at(self.time + seconds, fail)

    def _publish(self, transfer: Transfer, available: int | None) -> None:
        host, key = self.hosts[transfer.host], self.keys[transfer.layer]
        transfer.published = self.network.size[transfer.row] if available is None else available
        for home in host.view.homes_of(key, host.known_dead):
            size = int(self.network.size[transfer.row])
            host.view.publish(home, host.name, Holding(key, size, available), host.upstream.doubted())

    def _withdraw(self, transfer: Transfer) -> None:
        host, key = self.hosts[transfer.host], self.keys[transfer.layer]
        for home in host.view.homes_of(key, host.known_dead):
            host.view.withdraw(home, host.name, key)

    def _report_of(self, transfer: Transfer, end: str | None = None) -> LeaseReport:
        feeder = None if transfer.feeder == NOBODY else self.hosts[transfer.feeder].name
        offset = int(self.network.offset[transfer.row])
        return LeaseReport(self.keys[transfer.layer], offset, feeder, end)

    def _report_soon(self, host: SimulatedHost, home: str, interval: float) -> None:
        if home not in host.reporting:
            host.reporting.add(home)
            self.at(self.time + interval * self._random.uniform(0.8, 1), lambda: self._report(host, home))

    def _report(self, host: SimulatedHost, home: str) -> None:
        """Report on all transfers of a host to one home, and ask again where the home has a better answer."""
        host.reporting.discard(home)
        if home in host.view.dead and host.is_alive:
            self._leave_home(host, home)
        held = {self.keys[each.layer]: each for each in host.held.values() if each.home == home}
        if not held or not host.is_alive:
            return
        entries = [self._report_of(each) for each in held.values()]
        superseded, interval = host.view.report(home, host.name, entries, host.upstream.best_rate())
        self._report_soon(host, home, interval)
        for key in superseded:
            host.view.report(home, host.name, [self._report_of(held[key], LeaseEnd.SUPERSEDED)], None)
            self.acquire(held[key])

    def _leave_home(self, host: SimulatedHost, dead: str) -> None:
        """Use other homes, because one does not answer. They learn what this host has."""
        host.known_dead.add(dead)
        for layer in range(host.next_layer):
            transfer = self.transfers[self.network.row(host.number, layer)]
            self._publish(transfer, None if transfer.state is State.DONE else int(max(transfer.published, 0)))
            if transfer.home == dead:
                transfer.home = host.view.homes_of(self.keys[layer], host.known_dead)[0]
                self._report_soon(host, transfer.home, _HOME_TIMEOUT)

    def _every_second(self) -> None:
        for view in self.views:
            view.expire()
        late = np.flatnonzero(self.time - self._progress > self.limits.wait_timeout)
        for row in late:
            transfer = self.transfers[row]
            if transfer.state in {State.FED, State.WAITING}:
                self._stop(transfer, State.WAITING)
                self._go_upstream(transfer)
