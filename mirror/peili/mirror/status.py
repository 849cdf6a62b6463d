"""Builds the document of ``/status``: what this host is and does now. `peili status` and the page show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from peili.mirror.accounting.accounting import Accounting
from peili.mirror.accounting.byte_counts import Received
from peili.mirror.client.client import PeerClient
from peili.mirror.content.incoming import Incoming
from peili.mirror.metrics.counters import LOCAL, PEER, Metrics, peili_version
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.peers import Peer, UnreachablePeer
from peili.mirror.support.log_lines import LoggedProblem

_MOST_ROWS = 256
"""How many transfers and peers are listed."""


@dataclass(frozen=True, slots=True)
class StatusParts:
    """What a status is made of.

    Attributes:
        identity: This host as a peer.
        plugins: The class of each plug-in, by its part: store, router or resolver.
        ready: Whether each part is ready.
        peers: The peers that the router knows, without those that do not answer.
        unreachable: The peers that do not answer.
        client: Knows when each peer answered last.
        incoming: Returns the content of a digest that arrives here; None if it does not.
        advertised: The number of keys that peers know this host has.
        metrics: The counters.
        accounting: What the runtime received.
        problems: The last warnings and errors.
    """

    identity: Peer
    plugins: Mapping[str, str]
    ready: Mapping[str, bool]
    peers: Iterable[Peer]
    unreachable: Iterable[UnreachablePeer]
    client: PeerClient
    incoming: Callable[[Digest], Incoming | None]
    advertised: int
    metrics: Metrics
    accounting: Accounting
    problems: Iterable[LoggedProblem]

    def document(self) -> dict[str, Any]:
        """Return the status as values for JSON. Times are in seconds since 1970, sizes in bytes."""
        accounting, peers = self.accounting, list(self.peers)
        names = names_by_address(peers)
        accounting.sample()
        return {
            "identity": self.identity.id,
            "urls": list(self.identity.urls),
            "version": peili_version(),
            "started": accounting.started,
            "now": time.time(),
            "plugins": dict(self.plugins),
            "ready": dict(self.ready),
            "advertised": self.advertised,
            "peers_known": len(peers),
            "peers": [self._peer(each) for each in peers[:_MOST_ROWS]],
            "unreachable": [
                {**self._described(each.peer), "reason": each.reason, "since": each.since, "last_seen": each.last_seen}
                for each in self.unreachable
            ],
            "runtime": self.metrics.clients.summary(),
            "upstream_requests": self.metrics.upstream_requests.total(),
            "received": _received(accounting.totals()),
            "received_today": _received(accounting.history.today),
            "transfers": [self._transfer(each, names) for each in accounting.active() if each.repository][:_MOST_ROWS],
            "pulls": [each.json() for each in accounting.pulls],
            "recent_pulls": [each.json() for each in reversed(accounting.recent)],
            "problems": [asdict(each) for each in self.problems],
        }

    def _described(self, peer: Peer) -> dict[str, Any]:
        described: dict[str, Any] = {"id": peer.id, "name": self.client.name_of(peer), "urls": list(peer.urls)}
        return described if peer.tls_name is None else {**described, "tls_name": peer.tls_name}

    def _peer(self, peer: Peer) -> dict[str, Any]:
        contact = self.client.contact(peer)
        described = self._described(peer)
        if peer.labels:
            described["labels"] = dict(peer.labels)
        if contact is not None:
            described |= {"last_seen": contact.last_seen, "round_trip": contact.round_trip}
        return described

    def _transfer(self, record: RequestRecord, names: Mapping[str, str]) -> dict[str, Any]:
        """Return a request in progress.

        ``from`` is the peer that sends it to this host, ``to`` the host that gets it: its id if `names` has its
        address. ``path`` are the ids from this host to the one that has the content or, if ``from_upstream``, whose
        runtime fetches it.
        """
        incoming = self.incoming(record.digest) if record.digest is not None else None
        state = incoming.state() if incoming is not None else None
        is_local = record.door == LOCAL
        size = record.length or (state.size if state is not None else None)
        return {
            "door": record.door,
            "repository": record.repository,
            "digest": record.digest,
            "size": size,
            "sent": record.sent,
            "seconds": round(time.monotonic() - record.started, 3),
            "source": record.source or None,
            "from": next(reversed([*record.senders]), None) if is_local else None,
            "to": names.get(record.client, record.client) if record.door == PEER else None,
            "path": list(state.path) if state is not None else [],
            "from_upstream": incoming is not None and incoming.is_from_upstream,
        }


def names_by_address(peers: Iterable[Peer]) -> dict[str, str]:
    """Return the ids of the peers by the addresses in their URLs, without addresses that several peers have."""
    found: dict[str, set[str]] = {}
    for peer in peers:
        for url in peer.urls:
            found.setdefault(urlsplit(url).hostname or "", set()).add(peer.id)
    return {address: ids.pop() for address, ids in found.items() if len(ids) == 1}


def _received(received: Received) -> dict[str, Any]:
    return {**asdict(received), "saved": received.saved}
