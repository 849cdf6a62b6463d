"""Checks of the running peili by requests: its local door, and a request as containerd would send it."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from typing_extensions import override

from peili.adapters.containerd.doctor.result import CheckResult, ago, fail, ok, warn
from peili.adapters.containerd.hosts_toml.model import DEFAULT, RegistryHost
from peili.adapters.containerd.hosts_toml.status import RegistryStatus
from peili.mirror import Descriptor, NotFound, PullRights, Reference, Selection
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.listing import list_images

_NAME = "peili-doctor"
_CREDENTIALS = ("header", "client")
"""The settings of a host in hosts.toml that show rights."""
TIMEOUT = 5.0
"""Seconds within which a door has to answer."""
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


_KINDS = {"identity": str, "urls": list, "ready": dict, "peers": list, "unreachable": list, "runtime": dict}
"""The type of each value in the JSON of `MirrorStatus`."""


def make_client(urls: Iterable[str], tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """Return a client without a proxy. That is how containerd reaches a mirror, and how peers reach the peer door.

    Args:
        urls: The URLs that it is for. If none is https, it trusts no certificate.
        tls: How https URLs are reached. None means with the system's certificate authorities.
    """
    verify = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls is None and not all(each.startswith("http:") for each in urls):
        verify = ssl.create_default_context()  # the system's authorities take long to load
    transport = _AlertTransport(verify=verify, trust_env=False)
    return httpx.AsyncClient(trust_env=False, timeout=TIMEOUT, transport=transport, headers={"User-Agent": _NAME})


class _AlertTransport(httpx.AsyncHTTPTransport):
    """Translates an alert of the server after the handshake, which httpx passes on as it is.

    With TLS 1.3, a server that refuses the certificate of the client says so only then.
    """

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except ssl.SSLError as error:
            raise httpx.ReadError(str(error), request=request) from error


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
        what = f"{url} accepts connections, but does not answer within {TIMEOUT:g} seconds"
        raise _NoPeili(what, "restart peili; containerd has no timeout of its own, and would wait as long") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last: not a host name
        reason = str(error) or type(error).__name__
        if "[SSL" in reason or (url.startswith("https:") and not isinstance(error, httpx.ConnectError)):
            fix = "set hosts.ca to the authority of local.cert, and hosts.client_cert if local.client_ca is set"
            raise _NoPeili(f"no TLS connection to {url}, as containerd would make one: {reason}", fix) from error
        fix = "start peili, or set local.listen to the address that hosts.toml names"
        raise _NoPeili(f"nothing answers at {url} ({reason})", fix) from error


def _another_program(response: httpx.Response, url: str, path: str, key: str) -> _NoPeili:
    what = f"what answers at {url} is not peili (status {response.status_code} for {path})"
    return _NoPeili(what, f"give peili a port of its own with {key}, and run: peili hosts apply")


def _parse_status(response: httpx.Response) -> MirrorStatus | None:
    try:
        document = response.json()
    except (ValueError, RecursionError):
        return None
    if response.status_code != 200 or not isinstance(document, dict) or "identity" not in document:
        return None
    fields = {key: value for key, value in cast("dict[str, Any]", document).items() if key in _KINDS}
    return MirrorStatus(**fields) if all(isinstance(value, _KINDS[key]) for key, value in fields.items()) else None


def check_readiness(status: MirrorStatus) -> CheckResult:
    """Check that every part of peili is ready."""
    missing = [part for part, is_ready in status.ready.items() if not is_ready]
    if missing:
        return fail("ready", f"not ready: {', '.join(missing)}", "see peili's log; a start takes about a second")
    return ok("ready", ", ".join(status.ready))


def check_containerd_requests(status: MirrorStatus, now: float) -> CheckResult:
    """Check that containerd has sent requests to this peili; `now` is in seconds since 1970."""
    about = "asked"
    seen = status.runtime.get("containerd")
    if seen is None:
        others = ", ".join(name for name in status.runtime if name not in {"other", _NAME})
        hint = f"; other runtimes have: {others}" if others else ""
        fix = "pull an image that this host does not have; if this warning remains, fix what failed above"
        return warn(about, f"containerd has sent no request since peili started{hint}", fix)
    return ok(about, f"containerd has sent {seen['requests']:g} requests, the last {ago(now - seen['last'])} ago")


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


async def check_rights(
    client: httpx.AsyncClient, mirror: str, images: Sequence[tuple[Reference, Descriptor]]
) -> CheckResult:
    """Check that the first of `images`, which are covered, is not given to a request without rights."""
    about = "rights"
    if not images:
        return ok(about, "containerd has no image that mirror.authorize covers")
    reference, target = images[0]
    path = f"/v2/{reference.repository}/manifests/{target.digest}"
    try:
        response = await client.head(f"{mirror}{path}", params={"ns": reference.registry}, headers={"Accept": _ACCEPT})
    except httpx.HTTPError as error:
        return _no_answer(mirror, error, about)
    if response.status_code in {401, 403, 404}:
        return ok(about, f"a request without rights for {reference} is answered {response.status_code}")
    what = f"{reference} is given to a request without rights, although mirror.authorize covers it"
    fix = "restart peili, unless the registry, or a mirror of it in its hosts.toml, gives this image to everybody, too"
    return warn(about, what, fix)


def check_credentials(mirror: str, statuses: Sequence[RegistryStatus], rights: PullRights) -> Iterator[CheckResult]:
    """Check that containerd needs no token for a registry that is covered, because hosts.toml has other credentials.

    peili uses what hosts.toml has, too, so everybody on this host would have these rights.

    Args:
        mirror: The URL of the local door.
        statuses: What hosts.toml files configure.
        rights: Whose images are given only to those who may pull them.
    """
    for status in statuses if rights.coverage else ():
        if not (status.registry == DEFAULT or rights.coverage.concerns(status.registry)):
            continue
        for host in status.hosts:
            shown = [name for name in _CREDENTIALS if host.values.get(name)]
            if shown and not host.leads_to(mirror):
                names, where = " and a ".join(shown), host.url or "the registry"
                what = (
                    f"hosts.toml of {status.registry} has a {names} for {where}, so everybody on this host may pull"
                    " what mirror.authorize covers there"
                )
                yield warn("rights", what, "remove it there, and let each runtime use its pull secrets")


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


def _no_answer(mirror: str, error: httpx.HTTPError, about: str = "request") -> CheckResult:
    reason = f"no answer within {TIMEOUT:g} seconds" if isinstance(error, httpx.TimeoutException) else str(error)
    return fail(about, f"{mirror}: {reason or type(error).__name__}", "start peili, or see its log")
