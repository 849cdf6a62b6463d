"""Checks of the peer doors, by requests: do other hosts reach this one, and does it reach them?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from peili.adapters.containerd.doctor.mirror_checks import TIMEOUT, MirrorStatus
from peili.adapters.containerd.doctor.result import CheckResult, ago, fail, ok, warn
from peili.mirror import IDENTITY_HEADER, Limits, Peer, PeerClient, PeerTLS, PeerUnavailable

_MAX_NAMED_PEERS = 5
_ANOTHER = "another server"
_ASKED = "asked"
"""The id of a peer that is only asked who it is."""


def make_peer_client(tls: PeerTLS | None) -> PeerClient:
    """Return a client that reaches peers as the mirror does, with the TLS between peers."""
    return PeerClient(Limits(connect_timeout=TIMEOUT), tls=tls)


async def check_peer_door(
    client: httpx.AsyncClient | PeerClient, status: MirrorStatus, *, is_closed: bool
) -> AsyncGenerator[CheckResult, None]:
    """Check that other hosts reach this peili at the URLs that it advertises.

    Args:
        client: A client from `make_client`, or one with the TLS between peers.
        status: The status of this peili.
        is_closed: Whether the peer door refuses every other host.
    """
    about = "peer door"
    if not status.urls:
        yield warn(about, "there is none, so this host shares nothing with others", "set peer.listen")
        return
    if is_closed:
        fix = "make a key with peili keys new, copy it to every host, and set peer.shared_key_file"
        yield fail(about, "it refuses every other host", fix)
    for url in status.urls:
        door = await _ask_door(client, url)
        if door.status is None:
            fix = "open the port, or set peer.advertise to a URL that other hosts can reach"
            who = "no peili with the right certificate" if isinstance(client, PeerClient) else "nothing"
            yield fail(about, f"{who} answers at {url}, the URL that peers use", fix)
        elif not door.status:
            yield ok(about, f"{url} accepts connections")
        elif door.status == 404:
            fix = "set peer.advertise to the URL of the peer door; it has a path only if the door is mounted there"
            yield fail(about, f"{door.name} answers 404 for {url}/v2/, so peers find nothing there", fix)
        elif door.name == status.identity:
            yield ok(about, f"this peili answers at {url}")
        else:
            yield fail(about, f"{door.name} answers at {url}", "set peer.advertise to a URL of this host")


async def check_peers(
    client: httpx.AsyncClient | PeerClient, status: MirrorStatus, now: float
) -> AsyncGenerator[CheckResult, None]:
    """Check that the peers that this peili knows answer, and admit this host; `now` is in seconds since 1970."""
    about, has_tls = "peers", isinstance(client, PeerClient)
    if not status.peers and not status.unreachable:
        fix = "name the other hosts in router.peers, or with mdns put them on the same network"
        yield warn(about, "none is known, so no content can come from peers", fix)
        return
    doors = await asyncio.gather(*(_ask_peer(client, peer) for peer in status.peers))
    asked = list(zip(status.peers, doors, strict=True))
    silent = [*status.unreachable, *({**peer, "reason": door.name} for peer, door in asked if door.status is None)]
    for result in _silent_peers(silent, now, has_tls=has_tls):
        yield result
    admit = "see peer.tls.names on those hosts" if has_tls else "set peer.shared_key_file to the same key on all hosts"
    problems = (
        (403, "answer 403, so their peer doors are closed to this host", admit),
        (404, "answer 404, so the path of their URL is wrong", "set peer.advertise on them, or the URL in the router"),
    )
    is_healthy = not silent
    for code, problem, fix in problems:
        found = [door.name for door in doors if door.status == code]
        if found:
            is_healthy = False
            names = ", ".join(found[:_MAX_NAMED_PEERS]) + (" …" if len(found) > _MAX_NAMED_PEERS else "")
            yield warn(about, f"{len(found)} of {len(doors)} {problem}: {names}", fix)
    if is_healthy:
        yield ok(about, f"{len(status.peers)} known, all answer")


def _silent_peers(peers: Sequence[Mapping[str, Any]], now: float, *, has_tls: bool) -> list[CheckResult]:
    """Return a result for each of the first peers that do not answer."""
    about, key = "peers", "; it needs the same key, or a certificate of the same authority" if has_tls else ""
    results: list[CheckResult] = []
    for peer in peers[:_MAX_NAMED_PEERS]:
        seen = peer.get("last_seen")
        when = "was never seen" if seen is None else f"was last seen {ago(now - seen)} ago"
        what = f"{peer.get('name') or peer['id']} is known, but does not answer, and {when}: {peer.get('reason')}"
        results.append(warn(about, what, f"start peili there, or open its port: {', '.join(peer['urls'])}{key}"))
    if len(peers) > _MAX_NAMED_PEERS:
        results.append(warn(about, f"{len(peers)} known peers do not answer in total", "see the status for all"))
    return results


@dataclass(frozen=True, slots=True)
class _DoorAnswer:
    """What answers at a peer door.

    Attributes:
        name: The id of the peili, or ``another server``; of a peer, its id with the URL; without an answer, the reason.
        status: The status of the answer; 0 if something listens but cannot be asked, such as a door that requires a
            client certificate; None if nothing answers.
    """

    name: str
    status: int | None


async def _ask_peer(client: httpx.AsyncClient | PeerClient, peer: Mapping[str, Any]) -> _DoorAnswer:
    """Ask a peer at its URLs, up to the first that answers."""
    answer = _DoorAnswer("it has no URL", None)
    for url in peer["urls"]:
        answer = await _ask_door(client, url, peer.get("tls_name"))
        if answer.status is not None:
            return _DoorAnswer(str(peer["id"]) if peer["id"] == url else f"{peer['id']} at {url}", answer.status)
    return answer


async def _ask_door(client: httpx.AsyncClient | PeerClient, url: str, tls_name: str | None = None) -> _DoorAnswer:
    """Ask the peer door at a base URL who it is."""
    if isinstance(client, PeerClient):
        try:
            head = await client.head(Peer(_ASKED, (url,), tls_name), "/v2/", timeout=TIMEOUT)
        except (PeerUnavailable, ValueError) as error:
            return _DoorAnswer(str(error).removeprefix(f"peer {_ASKED}: "), None)
        return _DoorAnswer(head.header(IDENTITY_HEADER) or _ANOTHER, head.status)
    try:
        response = await client.head(f"{url}/v2/")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last: not a host name
        may_be_closed = isinstance(error, httpx.ConnectError | httpx.ReadError | httpx.RemoteProtocolError)
        if may_be_closed and url.startswith("https:") and await _accepts_connections(url):
            return _DoorAnswer(_ANOTHER, 0)
        silence = f"no answer within {TIMEOUT:g} seconds" if isinstance(error, httpx.TimeoutException) else ""
        return _DoorAnswer(silence or str(error) or type(error).__name__, None)
    return _DoorAnswer(response.headers.get(IDENTITY_HEADER, _ANOTHER), response.status_code)


async def _accepts_connections(url: str) -> bool:
    parts = httpx.URL(url)
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(parts.host, parts.port or 443)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
