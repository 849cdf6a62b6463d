"""The peili that runs: whether this one answers at its doors, whom it knows, and who has asked it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

from peili.adapters.containerd.doctor.findings import Finding, fail, ok, warn
from peili.mirror.peer_api.peers import IDENTITY_HEADER

TIMEOUT = 5.0
"""Seconds that a door may take to answer."""
_SHOWN = 5  # peers that are named
_DAY, _HOUR, _MINUTE = 86400, 3600, 60


@dataclass(frozen=True, slots=True)
class Status:
    """What a running peili tells of itself (``/status``)."""

    identity: str
    urls: Sequence[str] = ()
    ready: Mapping[str, bool] = field(default_factory=dict[str, bool])
    peers: Sequence[Mapping[str, Any]] = ()
    runtime: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])


def client() -> httpx.AsyncClient:
    """As containerd reaches a mirror on this host and peers reach its door: no proxy of the environment's, and the
    system's certificate authorities.
    """
    tls = ssl.create_default_context()
    return httpx.AsyncClient(trust_env=False, timeout=TIMEOUT, verify=tls, headers={"User-Agent": "peili-doctor"})


async def local_door(http: httpx.AsyncClient, mirror: str) -> tuple[Status | None, Finding]:
    """Whether a peili answers at `mirror`, the URL of its local door."""
    about = "local door"
    try:
        response = await http.get(f"{mirror}/status")
        status = _status(response)
    except httpx.TimeoutException:
        mend = "restart peili; containerd has no timer of its own, and would wait as long"
        return None, fail(about, f"{mirror} takes the question and does not answer in {TIMEOUT:g} seconds", mend)
    except httpx.TransportError as error:
        mend = "start peili, or set local.listen to the address that hosts.toml names"
        return None, fail(about, f"nobody answers at {mirror} ({str(error) or type(error).__name__})", mend)
    if status is None:
        mend = "give peili a port of its own with local.listen, and run: peili hosts apply"
        return None, fail(about, f"what answers at {mirror} is no peili ({response.status_code} for /status)", mend)
    return status, ok(about, f"{mirror} is answered by peili {status.identity}")


def _status(response: httpx.Response) -> Status | None:
    try:
        told = response.json()
    except ValueError:
        return None
    if response.status_code != 200 or not isinstance(told, dict) or "identity" not in told:
        return None
    known = {key: value for key, value in cast("dict[str, Any]", told).items() if key in Status.__slots__}
    return Status(**known)


def readiness(status: Status) -> Finding:
    """Whether all its parts can do their work."""
    missing = [part for part, is_ready in status.ready.items() if not is_ready]
    if missing:
        return fail("ready", f"not yet: {', '.join(missing)}", "see what peili logs of it; a start takes a second")
    return ok("ready", ", ".join(status.ready))


async def peer_door(http: httpx.AsyncClient, status: Status, *, closed: bool) -> AsyncGenerator[Finding, None]:
    """Whether other hosts find this peili where it says that it is. `closed`: it lets nobody else in."""
    about = "peer door"
    if not status.urls:
        yield warn(about, "there is none, so this host gives nothing to others", "set peer.listen")
        return
    if closed:
        mend = "set peer.insecure = true, and let only the peers reach the port"
        yield fail(about, "it refuses every other host", mend)
    for url in status.urls:
        who = await _who(http, url)
        if who == status.identity:
            yield ok(about, f"{url} is answered by this peili")
        elif who is None:
            mend = "open the port, or set peer.advertise to where others reach it"
            yield fail(about, f"nobody answers at {url}, which is what peers are told", mend)
        elif who:
            yield fail(about, f"{url} is answered by {who}", "set peer.advertise to an address of this host")
        else:
            yield ok(about, f"{url} takes connections")


async def peers(http: httpx.AsyncClient, status: Status) -> Finding:
    """Whether the peers that it knows answer."""
    about = "peers"
    if not status.peers:
        mend = "name the others in router.peers, or see that they are on the same network for mdns"
        return warn(about, "none is known, so nothing can come from one", mend)
    reached = await asyncio.gather(*(_reached(http, peer) for peer in status.peers))
    gone = [str(peer["id"]) for peer, is_there in zip(status.peers, reached, strict=True) if not is_there]
    if gone:
        names = ", ".join(gone[:_SHOWN]) + (" …" if len(gone) > _SHOWN else "")
        mend = "open the peers' port, or see what they log"
        return warn(about, f"{len(gone)} of {len(status.peers)} do not answer: {names}", mend)
    return ok(about, f"{len(status.peers)} known, all answer")


async def _reached(http: httpx.AsyncClient, peer: Mapping[str, Any]) -> bool:
    for url in peer["urls"]:
        if await _who(http, url) is not None:
            return True
    return False


async def _who(http: httpx.AsyncClient, url: str) -> str | None:
    """The id of the peili that answers at the base URL of a peer door; empty where only that it listens can be found
    out, as by TLS, where it wants to see a certificate of ours; None where nobody does.
    """
    try:
        response = await http.head(f"{url}/v2/")
    except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
        return "" if url.startswith("https:") and await _listens(url) else None
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    who: str = response.headers.get(IDENTITY_HEADER, "somebody else")
    return who


async def _listens(url: str) -> bool:
    parts = httpx.URL(url)
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(parts.host, parts.port or 443)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def asked(status: Status, now: float) -> Finding:
    """Whether containerd has ever asked; `now` in seconds since 1970."""
    seen = status.runtime.get("containerd")
    if seen is None:
        others = ", ".join(name for name in status.runtime if name != "other")  # the doctor's own requests are others
        also = f"; others have: {others}" if others else ""
        what = f"containerd has never asked since peili started{also}"
        return warn("asked", what, "pull an image that is not here yet; if this stays, mend what failed above")
    return ok("asked", f"containerd has asked {seen['requests']:g} times, last {_ago(now - seen['last'])} ago")


def _ago(seconds: float) -> str:
    for length, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}"
    return f"{max(0, int(seconds))} seconds"
