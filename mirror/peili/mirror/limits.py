"""Every bound of a mirror, with a default that suits a local network."""

from __future__ import annotations

from dataclasses import dataclass, fields

from peili.mirror.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
_MAX = 2**53
"""A value above this must be a mistake, and is not exact as a float."""
UNLIMITED = _MAX - 1
"""A number of bytes per second that means: no limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a mirror. Times are in seconds, sizes in bytes. Each value must be above zero.

    Raises:
        ConfigError: A value is wrong; the error names the field.
    """

    # Finding holders
    lookup_timeout: float = 1.0  # a peer that does not answer in this time counts as not having the key
    lookup_fanout: int = 32  # peers asked at the same time for one key
    lookup_ttl: float = 2.0  # how long found holders are remembered
    miss_ttl: float = 0.5  # how long it is remembered that no peer has a key
    lookup_keys: int = 4096  # how many keys are remembered, found or not
    backoff_min: float = 0.5  # the first delay before a dead peer is tried again; it doubles
    backoff_max: float = 10.0  # the longest of these delays
    # Directory: what a home remembers of the others
    directory_heartbeat: float = 5.0  # seconds between two messages of a host to a home; more if there are many members
    directory_keys: int = 65_536  # keys of one host
    directory_records: int = 131_072  # keys of all hosts together, a key counts once for each holder
    claim_keys: int = 8192  # keys that are being fetched, of all hosts together
    claim_hosts: int = 65_536  # hosts that fetch them, counted once for each key
    claim_timeout: float = 5.0  # others wait this long for a host that fetches from upstream, until it has bytes
    # Relaying to the runtime
    connect_timeout: float = 1.0
    first_byte_timeout: float = 3.0  # for each step before the first byte: access check, resolver, store, holder
    hedge_delay: float = 0.25  # silence after which more holders are asked; shorter after recent failures
    stall_timeout: float = 5.0  # silence after which a holder is replaced, or a response from the store is cut off
    min_rate: int = 64 * KIB  # bytes per second below which a holder is replaced
    rate_window: float = 10.0  # seconds of waiting for a holder over which min_rate is measured
    slow_rate: int = 8 * MIB  # bytes per second below which others are tried; a much faster one replaces it
    rest_max: float = 120.0  # a failing holder is asked last for at most this long: first failure_ttl, then doubled
    wait_timeout: float = 30.0  # waiting without progress, in total for a request
    parts_per_peer: int = 8  # windows of open-ended ranges at the same time per peer; below its uploads_per_peer
    transfers: int = 256  # local requests that are relayed or wait at the same time; also leases being released
    restarts: int = 16  # changes of holder within one request
    relay_memory: int = 32 * MIB  # for the buffers of all transfers and, up to half of it, for content collected whole
    ring_memory: int = 24 * MIB  # for what arrives and other hosts read, of all transfers together
    ring_size: int = 4 * MIB  # the same for one transfer
    verify_ahead: int = MIB  # content up to this size is verified before its first byte is sent
    blob_size: int = 64 * 1024 * MIB  # the largest blob to relay if neither a manifest nor the runtime states a size
    manifest_size: int = 4 * MIB  # manifests above this are not relayed (OCI distribution spec's advice)
    quarantine_ttl: float = 600.0  # how long a peer that sent wrong bytes is not asked for that blob
    failure_ttl: float = 10.0  # how long a peer that stalled or broke off is not asked for that blob
    quarantine_entries: int = 1024
    # Who may pull
    grants: int = 65_536  # answers of registries that are remembered
    # Asking registries
    upstream_timeout: float = 1.5  # a registry that does not answer a question in this time counts as down
    upstream_requests: int = 32  # questions at once, half to one registry; as many to those nobody configured
    upstream_answer: int = 4 * MIB  # the largest list of tags or of referrers that is read
    # Serving to peers
    uploads: int = 64
    uploads_per_peer: int = 16
    uploads_per_blob: int = 64
    in_flight_uploads: int = 32  # of the uploads, those of content that is still arriving
    children: int = 4  # uploads of one such blob; they share what this host receives
    upload_rate: int = UNLIMITED  # bytes per second to all peers; for each min_rate of it, one upload may run
    upload_rate_per_peer: int = UNLIMITED  # the same for one peer
    # Serving to peers and to the runtime
    manifest_memory: int = 2 * MIB  # for the manifests that a door has sent last; it opens no file for them again
    local_rate: int = UNLIMITED  # bytes per second to the runtime
    reader_timeout: float = 60.0  # a client that reads nothing for this long is cut off
    response_timeout: float = 3600.0  # a response that takes longer in total is cut off
    # Requests
    path_length: int = 4096
    header_count: int = 100
    header_size: int = 64 * KIB  # a connection with a longer request head is closed
    connections: int = 1024  # per door, or a third of the process's file descriptors; more are closed
    pipeline: int = 32  # requests that wait behind another; a connection with more is closed
    pipeline_size: int = 64 * KIB  # the bytes of these requests; a connection with more is closed
    header_timeout: float = 10.0  # a connection is closed if the head of a request is not complete in this time
    # Starting and stopping
    start_timeout: float = 1.0  # entering the mirror waits this long for the first step of its plug-ins
    stop_timeout: float = 5.0  # a plug-in that does not exit in this time is cancelled
    drain_timeout: float = 3.0  # when serving ends, transfers that take longer are cut off

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            kinds = (int,) if each.type == "int" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < _MAX:
                kind = "a whole number" if each.type == "int" else "a number"
                raise ConfigError(each.name, f"{kind} above zero, not {value!r}")
