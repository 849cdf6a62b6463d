"""What a mirror counts and measures."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from peili.mirror.errors import FailureReason
from peili.mirror.metrics.families import Counts, Durations, Family, Labels
from peili.mirror.metrics.requests import RequestRecord

LOCAL, PEER = "local", "peer"
"""The doors."""
OPS = "ops"
"""The address for operators. Its requests are not counted."""
FROM_STORE, FROM_PEER = "store", "peer"
"""Where content comes from."""
HIT, MISS, WAIT, FAILED = "hit", "miss", "wait", "failed"
"""The outcomes of asking the router."""
GRANTED, REMEMBERED, CHALLENGED, REFUSED, OUTAGE, CONFIRMED, UNCONFIRMED = (
    *("granted", "remembered", "challenged", "refused", "outage"),
    *("confirmed", "unconfirmed"),
)
"""The decisions about who may pull."""
SUPERSEDED = "superseded"
"""A home has a better answer than the one that it gave."""

_LIMITS = (
    "blob_size",
    "children",
    "claim_hosts",
    "claim_keys",
    "connections",
    "directory_keys",
    "directory_records",
    "drain_timeout",
    "first_byte_timeout",
    "grants",
    "header_count",
    "header_size",
    "header_timeout",
    "in_flight_uploads",
    "lookup_keys",
    "lookup_timeout",
    "manifest_size",
    "local_rate",
    "parts_per_peer",
    "path_length",
    "pipeline",
    "pipeline_size",
    "quarantine_entries",
    "reader_timeout",
    "relay_memory",
    "response_timeout",
    "restarts",
    "ring_memory",
    "stall_timeout",
    "start_timeout",
    "stop_timeout",
    "transfers",
    "upload_rate",
    "upload_rate_per_peer",
    "uploads",
    "uploads_per_blob",
    "uploads_per_peer",
    "wait_timeout",
)
_CLIENTS = frozenset(
    {"buildkit", "containerd", "containers", "cri-o", "docker", "oras", "peili-doctor", "podman", "skopeo"}
)
"""The first words of `User-Agent` headers. All others share one series, so that clients cannot create series."""
_LOOKUP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class DoorCounters:
    """What the doors count: requests, the bytes that they send, and those that they leave to upstream.

    Attributes:
        active: The requests in progress, at both doors.
    """

    def __init__(self) -> None:
        self.requests = Counts(
            "peili_requests_total",
            "Requests that ended. `status` is none without a response; `source` is where the content came from.",
            *("door", "endpoint", "method", "status", "source"),
        )
        self.cut = Counts(
            "peili_cut_answers_total",
            "Responses that were started and not finished.",
            "door",
            initial=[(LOCAL,), (PEER,)],
        )
        self.sent = Counts(
            "peili_sent_bytes_total",
            "Bytes of content that were sent, by door and source.",
            *("door", "source"),
            initial=[(LOCAL, FROM_STORE), (LOCAL, FROM_PEER), (PEER, FROM_STORE)],
        )
        self.request_seconds = Durations(
            "peili_request_duration_seconds",
            "How long requests took, from their head to the end of the response, by door, endpoint and answer.",
            _REQUEST_SECONDS,
            *("door", "endpoint", "answer"),
        )
        self.active: set[RequestRecord] = set()
        self.upstream_bytes = Counts(
            "peili_upstream_bytes_total",
            "Bytes that the runtime fetched from upstream: the rest of content that it requested here and did not get "
            "whole, and that appeared in the store later.",
            initial=[()],
        )
        self.upstream_blobs = Counts(
            "peili_upstream_blobs_total",
            "Blobs and manifests of which the runtime fetched bytes from upstream, as above.",
            initial=[()],
        )
        self.pulls = Counts(
            "peili_pulls_total", "Images that the runtime pulled, at least in part, through this mirror.", initial=[()]
        )
        self.rights = Counts(
            "peili_rights_total",
            "Decisions about requests for covered images: `granted` by the registry; `remembered`, granted by an "
            "earlier answer; `challenged`, told where to get a token; `refused`; `outage`, the registry did not "
            "answer. For content that is known only from covered images and is requested for another one: "
            "`confirmed`, the registry has it there, too; `unconfirmed`.",
            "decision",
            initial=[(each,) for each in (GRANTED, REMEMBERED, CHALLENGED, REFUSED, OUTAGE, CONFIRMED, UNCONFIRMED)],
        )

    def door_families(self) -> list[Family]:
        """Return the counters of the doors."""
        counts = (self.upstream_bytes, self.upstream_blobs, self.pulls, self.rights)
        counters = (self.requests, self.cut, self.sent, *counts)
        return [*(each.family() for each in counters), self.request_seconds.family()]


class Metrics(DoorCounters):
    """The counters of one mirror. They keep their values when it is exited and entered again."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = Counts(
            "peili_peer_failures_total",
            "Peers that could not be used while content was fetched, by reason.",
            "reason",
            initial=[(each,) for each in sorted(FailureReason)],
        )
        self.quarantines = Counts(
            "peili_quarantines_total",
            "Peers that are not used for a blob because they sent wrong bytes of it.",
            initial=[()],
        )
        self.unverified = Counts(
            "peili_unverified_relays_total",
            "Responses that were relayed unverified although `verify` is on: a `part` without the end of the content, "
            "or one whose `beginning` could not be read back.",
            "reason",
            initial=[("part",), ("beginning",)],
        )
        self.lookups = Counts(
            "peili_lookups_total",
            "Requests to the router for content that is not here, by its answer.",
            "result",
            initial=[(each,) for each in (HIT, MISS, WAIT, FAILED)],
        )
        self.grants = Counts(
            "peili_grants_total",
            "What this host, as a home, answered to hosts that asked where to get content: `hit`, from other hosts; "
            "`miss`, from upstream, as the one that fetches it for all; `wait`; and `superseded`, to ask again.",
            "answer",
            initial=[(each,) for each in (HIT, MISS, WAIT, SUPERSEDED)],
        )
        self.lookup_seconds = Durations("peili_lookup_seconds", "How long the router took to answer.", _LOOKUP_SECONDS)
        self.limited = Counts(
            "peili_limited_total",
            "How often a limit of `Limits` was reached.",
            "limit",
            initial=[(each,) for each in _LIMITS],
        )
        self.upstream_requests = Counts(
            "peili_upstream_requests_total",
            "Questions that this host asked a registry (it never fetches content from one), by endpoint of the API and "
            "by answer.",
            *("endpoint", "answer"),
            initial=[("manifests", each) for each in ("readable", "challenged", "denied", "absent", "unreachable")],
        )
        self.clients = RuntimeClients()

    def families(self) -> list[Family]:
        """Return all counters with their current values. May be called from any thread."""
        counters = (
            *(self.failures, self.quarantines, self.unverified),
            *(self.lookups, self.lookup_seconds, self.grants, self.limited, self.upstream_requests),
        )
        return [
            *self.door_families(),
            *(each.family() for each in counters),
            *self.clients.families(),
            _build(),
        ]


class RuntimeClients:
    """The clients of the local door, by the first word of their `User-Agent`."""

    def __init__(self) -> None:
        self._requests = Counts(
            "peili_runtime_requests_total",
            "Requests at the local door, by the name in the client's User-Agent.",
            "client",
            initial=[("containerd",)],
        )
        self._last: dict[Labels, float] = {}

    def count(self, user_agent: str, now: float) -> None:
        """Count a request of a client with this `user_agent`; `now` is in seconds since 1970."""
        name = user_agent.partition("/")[0].strip().lower()
        client = name if name in _CLIENTS else "other"
        self._requests.add(client)
        self._last[client,] = now

    def summary(self) -> dict[str, dict[str, float]]:
        """Return, for each client, its number of `requests` and the time of the `last` one, in seconds since 1970."""
        return {
            client: {"requests": self._requests.value(client), "last": last} for (client,), last in self._last.items()
        }

    def families(self) -> list[Family]:
        """Return the current values."""
        last = "When a client last used the local door, in seconds since 1970."
        name = "peili_runtime_last_request_timestamp_seconds"
        return [self._requests.family(), Family(name, "gauge", last, ("client",), dict(self._last))]


@dataclass(frozen=True, slots=True)
class Gauges:
    """The state of a mirror now. None stands for an unknown value."""

    ready: Mapping[str, bool]
    peers: int | None = None
    advertised: int | None = None
    transfers: int | None = None
    uploads: int | None = None
    uploads_in_flight: int | None = None

    def families(self) -> list[Family]:
        """Return all gauges."""
        ready: dict[Labels, float] = {(part,): float(is_so) for part, is_so in self.ready.items()}
        return [
            Family("peili_ready", "gauge", "Whether a part of the mirror can do its work now.", ("part",), ready),
            _gauge("peili_peers", "Peers that are known and answer.", self.peers),
            _gauge("peili_advertised_keys", "Digests and tags that are advertised to peers.", self.advertised),
            _gauge("peili_transfers", "Requests of the runtime that are relayed, or wait to be.", self.transfers),
            _gauge("peili_uploads", "Responses with content that are being sent to peers.", self.uploads),
            _gauge(
                "peili_uploads_in_flight",
                "Of these, those of content that was still arriving here: the fan-out of a cold start.",
                self.uploads_in_flight,
            ),
        ]


def empty_families() -> list[Family]:
    """Return every metric that exists, with no values."""
    return [*Metrics().families(), *Gauges({}).families()]


def _gauge(name: str, text: str, value: int | None) -> Family:
    return Family(name, "gauge", text, (), {} if value is None else {(): value})


def peili_version() -> str:
    """Return the installed version of peili; ``unknown`` in a frozen app without the metadata."""
    try:
        return metadata.version("peili")
    except metadata.PackageNotFoundError:
        return "unknown"


def _build() -> Family:
    built: dict[Labels, float] = {(peili_version(), platform.python_version()): 1}
    return Family("peili_build_info", "gauge", "The versions of peili and of Python.", ("version", "python"), built)
