"""What hosts and a home say to each other about who fetches a key from upstream, and who feeds whom.

A host asks with a `ClaimRequest` and gets a `Grant`. While it receives, it sends a `LeaseReport` now and then. A feeder
is the host that another one reads from; a root is a host whose runtime fetches from upstream. docs/protocol.md has the
messages. Functions that parse one raise ValueError, with one line that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from peili.mirror.peer_api.directory import MAX_HOLDERS, MAX_KNOWN, HoldersAnswer, KnownHolder, parse_known_holder
from peili.mirror.peer_api.messages import (
    MAX_TOKEN,
    JsonObject,
    checked,
    encode_message,
    encode_state,
    parse_boolean,
    parse_identity,
    parse_key,
    parse_list,
    parse_number,
    parse_object,
    parse_rate,
    parse_seconds,
    parse_text,
    parse_version,
)

ACQUIRE_ROUTE = "/v1/acquire"
"""The route for `AcquireQuery`: a host asks a home where it gets a key."""
LEASES_ROUTE = "/v1/leases"
"""The route for `LeaseReports`: a host says what became of the answers."""
ACQUIRE_PATH, LEASES_PATH = (f"/_router{route}" for route in (ACQUIRE_ROUTE, LEASES_ROUTE))

MAX_FAILED = 256
"""How many hosts `ClaimRequest.failed` has at most."""
MAX_REPORTS = 500
"""How many leases one `LeaseReports` is about at most."""
_SHORTEST_WAIT = 0.001
"""Seconds. A host that is told to wait for less, perhaps by a home of another implementation, waits for so long."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A host needs the content of a key. It asks at the start of a transfer, and whenever it needs another source.

    Attributes:
        host: The id of the host.
        key: The key as text.
        offset: The first byte that it needs.
        size: The size of the whole content in bytes, if the host knows it.
        can_share: Whether it can show the content to others while it arrives.
        failed: The ids of hosts that it can't use, each with the reason, a `FailureReason`.
        upstream_rate: The best rate in bytes per second at which it has lately received from upstream in all; 0 if
            that was too small to show a rate.
        is_fetching: Whether its runtime fetches the content from upstream already, because another home, or nobody,
            has decided that. The home takes note of it.
        follows: As in `Want`.
    """

    host: str
    key: str
    offset: int = 0
    size: int | None = None
    can_share: bool = False
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    upstream_rate: float | None = None
    is_fetching: bool = False
    follows: bool = False


@dataclass(frozen=True, slots=True)
class FeedFrom:
    """Read from one of `holders`, best first. There is at least one. If one is not complete, it is the only one."""

    holders: tuple[KnownHolder, ...]


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Ask again after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GoUpstream:
    """Let the runtime fetch the content from upstream."""


Grant: TypeAlias = FeedFrom | WaitFor | GoUpstream


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """What became of one grant so far.

    Attributes:
        key: The key as text.
        offset: The host has received all bytes before this one.
        feeder: The id of the host that it reads from; None if it reads from none.
        end: Why it no longer uses the grant, a `LeaseEnd` or a `FailureReason`; None while it does.
        source_available: How many bytes the feeder had when it last said so, if it is not complete.
        is_queued: Whether the runtime was sent upstream, and fetches other content first.
    """

    key: str
    offset: int
    feeder: str | None = None
    end: str | None = None
    source_available: int | None = None
    is_queued: bool = False


@dataclass(frozen=True, slots=True)
class AcquireQuery:
    """The query of a host: where does it get a key?

    Attributes:
        request: What it needs.
        known: As in `HoldersQuery`.
        is_final: Whether the home answers itself, although another host ranks higher as a home of the key.
    """

    request: ClaimRequest
    known: tuple[str, ...] = ()
    is_final: bool = False

    def encode(self) -> bytes:
        """Return the message as it is sent, without the id of the host, which is in a header."""
        request = self.request
        message: JsonObject = {
            "key": request.key,
            "offset": request.offset,
            "share": request.can_share,
            "failed": dict(request.failed),
            "known": self.known,
            "final": self.is_final,
        }
        optional = {
            "size": request.size,
            "rate": request.upstream_rate,
            "fetching": request.is_fetching or None,
            "follows": request.follows or None,
        }
        return encode_message(message | {name: value for name, value in optional.items() if value is not None})

    @classmethod
    def parse(cls, data: bytes, host: str) -> AcquireQuery:
        """Parse a message of `host`. Raises ValueError."""
        message = parse_object(data)
        size, rate = message.get("size"), message.get("rate")
        request = ClaimRequest(
            host=host,
            key=parse_key(message.get("key")),
            offset=parse_number(message.get("offset"), "offset"),
            size=None if size is None else parse_number(size, "size"),
            can_share=parse_boolean(message, "share"),
            failed=_failed(message.get("failed", {})),
            upstream_rate=None if rate is None else parse_rate(rate, "rate"),
            is_fetching=parse_boolean({"fetching": False} | message, "fetching"),
            follows=parse_boolean({"follows": False} | message, "follows"),
        )
        return cls(request, parse_list(message, "known", parse_version, MAX_KNOWN), parse_boolean(message, "final"))


@dataclass(frozen=True, slots=True)
class OtherHome:
    """Another host ranks higher as a home of the key, so the client asks that one."""

    id: str

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        return encode_message({"home": self.id})


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer of a home to an `AcquireQuery`.

    Attributes:
        grant: From where the host gets the content.
        known: What the home knows about the key, as in the answer to a `HoldersQuery`. It need not name all holders.
        interval: The host reports about the grant at intervals of so many seconds.
    """

    grant: Grant
    known: HoldersAnswer
    interval: float

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        message = self.known.to_object()
        match self.grant:
            case FeedFrom(holders):
                message["feed"] = [encode_state(each.id, each.size, each.available) for each in holders]
            case WaitFor(seconds):
                message["wait"] = max(seconds, _SHORTEST_WAIT)
            case GoUpstream():
                message["upstream"] = True
        return encode_message({**message, "report": self.interval})


def parse_acquire_answer(data: bytes) -> Granted | OtherHome:
    """Parse the answer to an `AcquireQuery`. Raises ValueError."""
    message = parse_object(data)
    if "home" in message:
        return OtherHome(parse_identity(message["home"]))
    known, grant = HoldersAnswer.from_object(message), _grant(message)
    return Granted(grant, known, parse_seconds(message.get("report"), "report"))


@dataclass(frozen=True, slots=True)
class LeaseReports:
    """The reports of a host to one home.

    Attributes:
        reports: At most `MAX_REPORTS`.
        upstream_rate: As in `ClaimRequest`.
    """

    reports: tuple[LeaseReport, ...]
    upstream_rate: float | None = None

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        message: JsonObject = {"leases": [_encode_report(each) for each in self.reports]}
        return encode_message(message if self.upstream_rate is None else {**message, "rate": self.upstream_rate})

    @classmethod
    def parse(cls, data: bytes) -> LeaseReports:
        """Parse a message. Raises ValueError."""
        message = parse_object(data)
        rate = message.get("rate")
        reports = parse_list(message, "leases", _report, MAX_REPORTS)
        return cls(reports, None if rate is None else parse_rate(rate, "rate"))


@dataclass(frozen=True, slots=True)
class LeasesAnswer:
    """The answer to `LeaseReports`.

    Attributes:
        superseded: The keys for which there is a better answer now: the host asks again.
        interval: Seconds until the next message.
    """

    superseded: tuple[str, ...]
    interval: float

    def encode(self) -> bytes:
        """Return the message as it is sent."""
        return encode_message({"superseded": self.superseded, "report": self.interval})

    @classmethod
    def parse(cls, data: bytes) -> LeasesAnswer:
        """Parse a message. Raises ValueError."""
        message = parse_object(data)
        superseded = parse_list(message, "superseded", parse_key, MAX_REPORTS)
        return cls(superseded, parse_seconds(message.get("report"), "report"))


def _failed(value: Any) -> Mapping[str, str]:
    failed = cast("JsonObject", checked(value, isinstance(value, dict), "failed is not an object"))
    checked(failed, len(failed) <= MAX_FAILED, f"failed is not within {MAX_FAILED} hosts")
    return {parse_identity(host): parse_text(reason, "a reason", MAX_TOKEN) for host, reason in failed.items()}


def _grant(message: JsonObject) -> Grant:
    if "feed" in message:
        holders = parse_list(message, "feed", parse_known_holder, MAX_HOLDERS)
        return FeedFrom(checked(holders, bool(holders), "feed has no holder"))
    if "wait" in message:
        return WaitFor(max(parse_seconds(message["wait"], "wait"), _SHORTEST_WAIT))
    checked(message, message.get("upstream") is True, "none of feed, wait, upstream and home")
    return GoUpstream()


def _encode_report(report: LeaseReport) -> JsonObject:
    message: JsonObject = {
        "key": report.key,
        "offset": report.offset,
        "feeder": report.feeder,
        "available": report.source_available,
        "end": report.end,
        "queued": report.is_queued or None,
    }
    return {name: value for name, value in message.items() if value is not None}


def _report(value: Any) -> LeaseReport:
    message = cast("JsonObject", checked(value, isinstance(value, dict), "a lease is not an object"))
    feeder, available, end = message.get("feeder"), message.get("available"), message.get("end")
    return LeaseReport(
        key=parse_key(message.get("key")),
        offset=parse_number(message.get("offset"), "offset"),
        feeder=None if feeder is None else parse_identity(feeder),
        end=None if end is None else parse_text(end, "end", MAX_TOKEN),
        source_available=None if available is None else parse_number(available, "available"),
        is_queued=parse_boolean({"queued": False} | message, "queued"),
    )
