"""Every bound that peili keeps, with a default that is sane on a LAN."""

from __future__ import annotations

from dataclasses import dataclass, fields

from peili.mirror.errors import ConfigError

KIB = 1024
_MOST = 2**53
"""Above it a number is a slip of the pen, and no longer exact as a float."""
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds, sizes in bytes. All have to be above zero. Raises ConfigError naming the field."""

    # Finding holders
    lookup_timeout: float = 1.0  # a peer that has not answered by then does not have it
    lookup_fanout: int = 32  # peers asked at the same time for one key
    lookup_ttl: float = 2.0  # how long found holders are believed
    miss_ttl: float = 0.5  # how long "nobody has it" is believed
    lookup_keys: int = 4096  # keys remembered, found or missed
    backoff_min: float = 0.5  # first pause before a dead peer is tried again …
    backoff_max: float = 10.0  # … doubled up to this
    # Relaying to the runtime
    connect_timeout: float = 1.0
    first_byte_timeout: float = 3.0  # for each step to the first byte: a door's auth, the resolver, the store, a holder
    hedge_delay: float = 0.25  # silence after which others are asked as well; the less, the more failed of late
    stall_timeout: float = 5.0  # silence in a transfer after which the holder is replaced, or the store's answer cut
    min_rate: int = 64 * KIB  # bytes per second below which a holder is replaced …
    rate_window: float = 10.0  # … measured over this many seconds of waiting for it
    slow_rate: int = 8 * MIB  # bytes per second below which others are tried too; a much faster one takes over
    rest_max: float = 120.0  # how long one that keeps failing is asked last: failure_ttl at first, then doubled
    wait_timeout: float = 30.0  # waiting without progress, in all
    parts_per_peer: int = 8  # windows of open-ended ranges asked of one peer at a time; below its uploads_per_peer
    transfers: int = 256  # local requests that are relayed or wait at the same time; also leases under release
    restarts: int = 16  # changes of holder within one request
    relay_memory: int = 32 * MIB  # of all transfers: buffers, the smaller the more there are; half is for manifests
    verify_ahead: int = MIB  # content up to this size is verified before its first byte is sent
    blob_size: int = 64 * 1024 * MIB  # bytes taken from a peer where neither a manifest nor the runtime says how many
    manifest_size: int = 4 * MIB  # manifests above this are not relayed (OCI distribution spec's advice)
    quarantine_ttl: float = 600.0  # how long a peer that lied is not asked for that blob
    failure_ttl: float = 10.0  # how long one that stalled or broke is passed over for that blob
    quarantine_entries: int = 1024
    # Serving to peers
    uploads: int = 64
    uploads_per_peer: int = 16
    reader_timeout: float = 60.0  # a reader that takes nothing for this long is cut off
    # Requests
    path_length: int = 4096
    header_count: int = 100
    header_size: int = 64 * KIB  # a connection whose request's head is longer is closed
    connections: int = 1024  # of each door, or a third of the descriptors that the process may have; more are closed
    pipeline: int = 32  # requests that wait behind another one; a connection with more of them is closed …
    pipeline_size: int = 64 * KIB  # … and so is one on which they take more bytes
    header_timeout: float = 10.0  # a connection whose request's head is not whole by then is closed
    # Coming and going
    start_timeout: float = 1.0  # entering the mirror waits at most this long for its plug-ins' first step
    stop_timeout: float = 5.0  # a plug-in that has not left by then is cancelled
    drain_timeout: float = 3.0  # transfers under way are given this long when serving ends

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            kinds = (int,) if each.type == "int" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < _MOST:
                kind = "a whole number" if each.type == "int" else "a number"
                raise ConfigError(each.name, f"{kind} above zero, not {value!r}")
