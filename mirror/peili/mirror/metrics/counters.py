"""What a mirror counts, as plain figures. How Prometheus gets them is in exposition.py.

RequestMetrics on the mirror's loop, by an increment in a dict; may be read from any thread.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, TypeAlias

from peili.mirror.errors import FailureReason

LOCAL, PEER = "local", "peer"
"""Doors."""
FROM_STORE, FROM_PEER = "store", "peer"
"""Sources of content."""
HIT, MISS, WAIT, FAILED = "hit", "miss", "wait", "failed"
"""What a router's advice was."""

_LIMITS = (
    "blob_size",
    "connections",
    "drain_timeout",
    "first_byte_timeout",
    "header_count",
    "header_size",
    "header_timeout",
    "lookup_keys",
    "lookup_timeout",
    "manifest_size",
    "parts_per_peer",
    "path_length",
    "pipeline",
    "pipeline_size",
    "quarantine_entries",
    "reader_timeout",
    "relay_memory",
    "restarts",
    "stall_timeout",
    "start_timeout",
    "stop_timeout",
    "transfers",
    "uploads",
    "uploads_per_peer",
    "wait_timeout",
)
_CLIENTS = frozenset({"buildkit", "containerd", "containers", "cri-o", "docker", "oras", "podman", "skopeo"})
"""The first word of a `User-Agent`. Others are counted together: whoever asks must not make series grow."""
_LOOKUP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often a value was at most each of some bounds (all values: infinity), and the sum of all values."""

    buckets: Sequence[tuple[float, int]]
    total: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: a sample for each combination of its labels' values. Named by Prometheus's conventions, in base units
    (seconds, bytes).
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Mapping[Labels, float | Distribution]


class Counts:
    """A number that grows, for each combination of labels."""

    def __init__(self, name: str, text: str, *labels: str, known: Sequence[Labels] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._values: dict[Labels, float] = dict.fromkeys(known, 0)  # a series that begins at 0 shows its first step

    def add(self, *labels: str, by: float = 1) -> None:
        """Count `by` for the values `labels`."""
        self._values[labels] = self._values.get(labels, 0) + by

    def value(self, *labels: str) -> float:
        """What was counted for the values `labels`."""
        return self._values.get(labels, 0)

    def family(self) -> Family:
        """What was counted so far."""
        return Family(self._name, "counter", self._text, self._labels, dict(self._values))


class Durations:
    """A histogram of seconds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Count one that took so long."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def family(self) -> Family:
        """What was counted so far."""
        buckets: list[tuple[float, int]] = []
        seen = 0
        for bound, count in zip((*self._bounds, float("inf")), list(self._counts), strict=True):
            seen += count
            buckets.append((bound, seen))
        return Family(self._name, "histogram", self._text, (), {(): Distribution(buckets, self._total)})


class Metrics:
    """The counters of one mirror. They live as long as it does, whether it is entered or not."""

    def __init__(self) -> None:
        self.requests = Counts(
            "peili_requests_total",
            "Requests that ended; `status` is none where no answer was begun, `source` where content came from.",
            *("door", "endpoint", "method", "status", "source"),
        )
        self.cut = Counts(
            "peili_cut_answers_total",
            "Answers that were begun and not finished.",
            "door",
            known=[(LOCAL,), (PEER,)],
        )
        self.sent = Counts(
            "peili_sent_bytes_total",
            "Bytes of content that were sent, by door and by where they came from.",
            *("door", "source"),
            known=[(LOCAL, FROM_STORE), (LOCAL, FROM_PEER), (PEER, FROM_STORE)],
        )
        self.failures = Counts(
            "peili_peer_failures_total",
            "Peers that were passed over while content was fetched, by reason.",
            "reason",
            known=[(each,) for each in sorted(FailureReason)],
        )
        self.quarantines = Counts(
            "peili_quarantines_total", "Peers that sent wrong bytes, each for one blob.", known=[()]
        )
        self.unverified = Counts(
            "peili_unverified_relays_total",
            "Answers that were passed on unverified though `verify` is on: a `part` that is not its content's end, "
            "or one whose `beginning` could not be read back.",
            "reason",
            known=[("part",), ("beginning",)],
        )
        self.lookups = Counts(
            "peili_lookups_total",
            "Questions to the router for content that is not here, by its advice.",
            "result",
            known=[(each,) for each in (HIT, MISS, WAIT, FAILED)],
        )
        self.lookup_seconds = Durations(
            "peili_lookup_seconds", "How long the router took to give its advice.", _LOOKUP_SECONDS
        )
        self.limited = Counts(
            "peili_limited_total",
            "How often a bound of the mirror's `Limits` was reached.",
            "limit",
            known=[(each,) for each in _LIMITS],
        )
        self._runtime = Counts(
            "peili_runtime_requests_total",
            "Requests at the local door, by the name that the client gives itself.",
            "client",
            known=[("containerd",)],
        )
        self._runtime_last: dict[Labels, float] = {}

    def asked(self, user_agent: str, now: float) -> None:
        """A client that calls itself `user_agent` asked at the local door; `now` in seconds since 1970."""
        name = user_agent.partition("/")[0].strip().lower()
        client = name if name in _CLIENTS else "other"
        self._runtime.add(client)
        self._runtime_last[client,] = now

    def runtime(self) -> dict[str, dict[str, float]]:
        """Of each client that has asked at the local door: its `requests`, and when the `last` was, in seconds since
        1970.
        """
        return {
            client: {"requests": self._runtime.value(client), "last": last}
            for (client,), last in self._runtime_last.items()
        }

    def families(self) -> list[Family]:
        """All of them, as they are now. May be called from any thread."""
        last = "When a client last asked at the local door, in seconds since 1970."
        counted = (self.requests, self.cut, self.sent, self.failures, self.quarantines, self.unverified)
        return [
            *(each.family() for each in (*counted, self.lookups, self.limited)),
            self.lookup_seconds.family(),
            self._runtime.family(),
            Family(
                "peili_runtime_last_request_timestamp_seconds", "gauge", last, ("client",), dict(self._runtime_last)
            ),
            _build(),
        ]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is so now. None: nobody knows."""

    ready: Mapping[str, bool]
    peers: int | None = None
    advertised: int | None = None
    transfers: int | None = None
    uploads: int | None = None

    def families(self) -> list[Family]:
        """All of them."""
        ready: dict[Labels, float] = {(part,): float(is_so) for part, is_so in self.ready.items()}
        return [
            Family("peili_ready", "gauge", "Whether a part can do its work now.", ("part",), ready),
            _gauge("peili_peers", "Peers that are known and not given up.", self.peers),
            _gauge("peili_advertised_keys", "Digests and tags that peers are told of.", self.advertised),
            _gauge("peili_transfers", "Requests of the runtime that are relayed, or wait for it.", self.transfers),
            _gauge("peili_uploads", "Answers with content that peers are being sent.", self.uploads),
        ]


def nothing() -> list[Family]:
    """Every metric there is, with nothing counted."""
    return [*Metrics().families(), *Gauges({}).families()]


def _gauge(name: str, text: str, value: int | None) -> Family:
    return Family(name, "gauge", text, (), {} if value is None else {(): value})


def _build() -> Family:
    try:
        version = metadata.version("peili")
    except metadata.PackageNotFoundError:  # a frozen app that left the metadata out
        version = "unknown"
    built: dict[Labels, float] = {(version, platform.python_version()): 1}
    return Family("peili_build_info", "gauge", "The version of peili, and of Python.", ("version", "python"), built)
