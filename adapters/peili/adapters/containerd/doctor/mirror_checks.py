"""Checks of the running peili by requests: its doors, its peers, and a request as containerd would send it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

from peili.adapters.containerd.doctor.result import CheckResult, fail, ok, warn
from peili.adapters.containerd.hosts_toml.model import DEFAULT, RegistryHost
from peili.adapters.containerd.hosts_toml.status import RegistryStatus
from peili.mirror import (
    IDENTITY_HEADER,
    Descriptor,
    Limits,
    NotFound,
    Peer,
    PeerClient,
    PeerTLS,
    PeerUnavailable,
    Reference,
    Selection,
)
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.listing import list_images

_TIMEOUT = 5.0
"""Seconds within which a door has to answer."""
_MAX_NAMED_PEERS = 5
_ANOTHER = "another server"
_DAY, _HOUR, _MINUTE = 86400, 3600, 60
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
"""The media types of a request by containerd for a manifest."""


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """What a running peili reports at ``/status``; the names are those of its JSON."""

    identity: str
    urls: Sequence[str] = ()
    ready: Mapping[str, bool] = field(default_factory=dict[str, bool])
    peers: Sequence[Mapping[str, Any]] = ()
    unreachable: Sequence[Mapping[str, Any]] = ()
    runtime: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])


def make_client() -> httpx.AsyncClient:
    """Return a client without a proxy and with the system's certificate authorities.

    That is how containerd reaches a mirror on this host, and how peers reach the peer door.
    """
    tls = ssl.create_default_context()
    return httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT, verify=tls, headers={"User-Agent": "peili-doctor"})


def make_peer_client(tls: PeerTLS | None) -> PeerClient:
    """Return a client that reaches peers as the mirror does, with the TLS between peers."""
    return PeerClient(Limits(connect_timeout=_TIMEOUT), tls=tls)


class _NoPeili(Exception):
    """No peili answers. `what` says what was found, `fix` what to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


async def check_local_door(
    client: httpx.AsyncClient, mirror: str, ops: str | None = None
) -> tuple[MirrorStatus | None, CheckResult]:
    """Check that a peili answers at its local door. Return its status, if it answers.

    Args:
        client: A client from `make_client`.
        mirror: The URL of the local door.
        ops: The URL of the status, if it has an address of its own.
    """
    about = "local door"
    try:
        response = await _get(client, ops or mirror, "/status")
        status = _parse_status(response)
        if status is None:
            raise _another_program(response, ops or mirror, "/status", "local.listen" if ops is None else "ops.listen")
        if ops is not None and (door := await _get(client, mirror, "/v2/")).status_code != 200:
            raise _another_program(door, mirror, "/v2/", "local.listen")
    except _NoPeili as error:
        return None, fail(about, error.what, error.fix)
    return status, ok(about, f"peili {status.identity} answers at {mirror}")


async def _get(client: httpx.AsyncClient, url: str, path: str) -> httpx.Response:
    try:
        return await client.get(f"{url}{path}")
    except httpx.TimeoutException as error:
        what = f"{url} accepts connections, but does not answer within {_TIMEOUT:g} seconds"
        raise _NoPeili(what, "restart peili; containerd has no timeout of its own, and would wait as long") from error
    except httpx.TransportError as error:
        fix = "start peili, or set local.listen to the address that hosts.toml names"
        raise _NoPeili(f"nothing answers at {url} ({str(error) or type(error).__name__})", fix) from error


def _another_program(response: httpx.Response, url: str, path: str, key: str) -> _NoPeili:
    what = f"what answers at {url} is not peili (status {response.status_code} for {path})"
    return _NoPeili(what, f"give peili a port of its own with {key}, and run: peili hosts apply")


def _parse_status(response: httpx.Response) -> MirrorStatus | None:
    try:
        document = response.json()
    except ValueError:
        return None
    if response.status_code != 200 or not isinstance(document, dict) or "identity" not in document:
        return None
    fields = cast("dict[str, Any]", document).items()
    return MirrorStatus(**{key: value for key, value in fields if key in MirrorStatus.__slots__})


def check_readiness(status: MirrorStatus) -> CheckResult:
    """Check that every part of peili is ready."""
    missing = [part for part, is_ready in status.ready.items() if not is_ready]
    if missing:
        return fail("ready", f"not ready: {', '.join(missing)}", "see peili's log; a start takes about a second")
    return ok("ready", ", ".join(status.ready))


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
        if door is None:
            fix = "open the port, or set peer.advertise to a URL that other hosts can reach"
            who = "no peili with the right certificate" if isinstance(client, PeerClient) else "nothing"
            yield fail(about, f"{who} answers at {url}, the URL that peers use", fix)
        elif not door.status:
            yield ok(about, f"{url} accepts connections")
        elif door.status == 404:
            fix = "set peer.advertise to the URL of the peer door; it has a path only if the door is mounted there"
            yield fail(about, f"{door.identity} answers 404 for {url}/v2/, so peers find nothing there", fix)
        elif door.identity == status.identity:
            yield ok(about, f"this peili answers at {url}")
        else:
            yield fail(about, f"{door.identity} answers at {url}", "set peer.advertise to a URL of this host")


async def check_peers(
    client: httpx.AsyncClient | PeerClient, status: MirrorStatus, now: float
) -> AsyncGenerator[CheckResult, None]:
    """Check that the peers that this peili knows answer, and admit this host; `now` is in seconds since 1970."""
    about = "peers"
    for peer in status.unreachable[:_MAX_NAMED_PEERS]:
        seen = peer.get("last_seen")
        when = "was never seen" if seen is None else f"was last seen {_ago(now - seen)} ago"
        what = f"{peer['id']} is known, but does not answer, and {when}: {peer.get('reason')}"
        yield warn(about, what, f"start peili there, or open its port: {', '.join(peer['urls'])}")
    if len(status.unreachable) > _MAX_NAMED_PEERS:
        yield warn(about, f"{len(status.unreachable)} known peers do not answer in total", "see the status for all")
    if not status.peers and status.unreachable:
        return
    if not status.peers:
        fix = "name the other hosts in router.peers, or with mdns put them on the same network"
        yield warn(about, "none is known, so no content can come from peers", fix)
        return
    doors = await asyncio.gather(*(_ask_peer(client, peer) for peer in status.peers))
    if isinstance(client, PeerClient):
        open_port, admit = "and give all hosts the same key", "see peer.tls.names on those hosts"
    else:
        open_port, admit = "or see their logs", "set peer.shared_key_file to the same key on all hosts"
    problems = (
        (None, "do not answer", f"open the peers' port, {open_port}"),
        (403, "answer 403, so their peer doors are closed to this host", admit),
        (404, "answer 404, so the path of their URL is wrong", "set peer.advertise on them, or the URL in the router"),
    )
    is_healthy = True
    for code, problem, fix in problems:
        found = [door.name for door in doors if door.status == code]
        if found:
            is_healthy = False
            names = ", ".join(found[:_MAX_NAMED_PEERS]) + (" …" if len(found) > _MAX_NAMED_PEERS else "")
            yield warn(about, f"{len(found)} of {len(doors)} {problem}: {names}", fix)
    if is_healthy:
        yield ok(about, f"{len(status.peers)} known, all answer")


@dataclass(frozen=True, slots=True)
class _PeerAnswer:
    """How a peer answers: its name with the URL that answers, and the status of its answer, None without one."""

    name: str
    status: int | None


async def _ask_peer(client: httpx.AsyncClient | PeerClient, peer: Mapping[str, Any]) -> _PeerAnswer:
    for url in peer["urls"]:
        door = await _ask_door(client, url, peer.get("tls_name"))
        if door is not None:
            return _PeerAnswer(str(peer["id"]) if peer["id"] == url else f"{peer['id']} at {url}", door.status)
    return _PeerAnswer(str(peer["id"]), None)


@dataclass(frozen=True, slots=True)
class _DoorAnswer:
    """What answers at the base URL of a peer door.

    Attributes:
        identity: The id of the peili, or ``another server``.
        status: The status of its answer; 0 if something listens but cannot be asked, such as a door that requires a
            client certificate.
    """

    identity: str
    status: int


async def _ask_door(
    client: httpx.AsyncClient | PeerClient, url: str, tls_name: str | None = None
) -> _DoorAnswer | None:
    """Ask the peer door at a base URL who it is. Returns None if nothing answers."""
    if isinstance(client, PeerClient):
        try:
            head = await client.head(Peer("unknown", (url,), tls_name), "/v2/", timeout=_TIMEOUT)
        except (PeerUnavailable, ValueError):
            return None
        return _DoorAnswer(head.header(IDENTITY_HEADER) or _ANOTHER, head.status)
    try:
        response = await client.head(f"{url}/v2/")
    except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
        is_closed = url.startswith("https:") and await _accepts_connections(url)
        return _DoorAnswer(_ANOTHER, 0) if is_closed else None
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return _DoorAnswer(response.headers.get(IDENTITY_HEADER, _ANOTHER), response.status_code)


async def _accepts_connections(url: str) -> bool:
    parts = httpx.URL(url)
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await asyncio.open_connection(parts.host, parts.port or 443)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def check_containerd_requests(status: MirrorStatus, now: float) -> CheckResult:
    """Check that containerd has sent requests to this peili; `now` is in seconds since 1970."""
    about = "asked"
    seen = status.runtime.get("containerd")
    if seen is None:
        others = ", ".join(name for name in status.runtime if name != "other")  # the doctor itself counts as other
        hint = f"; other runtimes have: {others}" if others else ""
        fix = "pull an image that this host does not have; if this warning remains, fix what failed above"
        return warn(about, f"containerd has sent no request since peili started{hint}", fix)
    return ok(about, f"containerd has sent {seen['requests']:g} requests, the last {_ago(now - seen['last'])} ago")


def _ago(seconds: float) -> str:
    for length, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}"
    return f"{max(0, int(seconds))} seconds"


async def stored_images(
    api: ContainerdApi, namespaces: Sequence[str], selection: Selection
) -> list[tuple[Reference, Descriptor]]:
    """Return the images that the mirror is for and whose manifest containerd has. Raises StoreUnavailable."""
    names = namespaces or await api.namespaces()
    images: list[tuple[Reference, Descriptor]] = []
    for reference, tagged in sorted((await list_images(api, names)).items()):
        if not selection.allows(reference.registry, reference.repository, reference.tag):
            continue
        for namespace in names:
            try:
                await api.info(namespace, tagged.target.digest)
            except NotFound:
                continue
            images.append((reference, tagged.target))
            break
    return images


async def check_request(
    client: httpx.AsyncClient,
    mirror: str,
    statuses: Sequence[RegistryStatus],
    images: Sequence[tuple[Reference, Descriptor]],
) -> CheckResult:
    """Check the answer to a request that containerd would send for one of `images`, if it leads to the mirror."""
    for reference, target in images:
        first = _first_host(statuses, reference.registry)
        if first is not None and first.leads_to(mirror):
            return await _request_manifest(client, mirror, reference, target)
    which = "of a registry that leads to the mirror" if images else "that this mirror is for"
    return await _request_root(client, mirror, f"containerd has no image {which}")


def _first_host(statuses: Sequence[RegistryStatus], registry: str) -> RegistryHost | None:
    """Return the host that containerd tries first for `registry`."""
    in_force = {each.registry: each for each in reversed(statuses) if each.hosts}
    found = in_force.get(registry) or in_force.get(DEFAULT)
    return found.hosts[0] if found is not None else None


async def _request_manifest(
    client: httpx.AsyncClient, mirror: str, reference: Reference, target: Descriptor
) -> CheckResult:
    about = "request"
    path = f"/v2/{reference.repository}/manifests/{target.digest}"
    try:
        response = await client.head(f"{mirror}{path}", params={"ns": reference.registry}, headers={"Accept": _ACCEPT})
    except httpx.HTTPError as error:
        return _no_answer(mirror, error)
    digest = response.headers.get("Docker-Content-Digest")
    if response.status_code != 200:
        what = f"{reference} is in containerd, but {mirror} answers {response.status_code} for {path}"
        return fail(about, what, "check that store.address and store.namespaces are those of this containerd")
    if digest != target.digest:
        what = f"{mirror} answers with digest {digest} for {target.digest}"
        return fail(about, what, "please report this as a bug")
    return ok(about, f"{mirror} answers correctly for {reference} ({target.digest})")


async def _request_root(client: httpx.AsyncClient, mirror: str, reason: str) -> CheckResult:
    about = "request"
    try:
        response = await client.get(f"{mirror}/v2/")
    except httpx.HTTPError as error:
        return _no_answer(mirror, error)
    if response.status_code != 200:
        what = f"{mirror}/v2/ answers {response.status_code}"
        return fail(about, what, "find out which program listens there")
    return ok(about, f"{reason}, so the doctor requested only {mirror}/v2/, which answers")


def _no_answer(mirror: str, error: httpx.HTTPError) -> CheckResult:
    reason = f"no answer within {_TIMEOUT:g} seconds" if isinstance(error, httpx.TimeoutException) else str(error)
    return fail("request", f"{mirror}: {reason or type(error).__name__}", "start peili, or see its log")
